"""Refuses a repository that the server found here cannot serve, before it is started."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tritonclip_serve.engines import check_engines
from tritonclip_serve.errors import RepositoryError
from tritonclip_serve.installation import Installation
from tritonclip_serve.repository import CONFIG, model_names, read_manifest

_BACKEND = re.compile(r'^(backend|platform):\s*"([^"]+)"', re.MULTILINE)
# Platforms that are written in the place of a backend, and the backend that each needs.
_ANYWHERE = "--runtime onnxruntime-python"
_WITHOUT = {"dali": "--preprocess cpu"}
_OF_PLATFORM = {"ensemble": None, "tensorrt_plan": "tensorrt"}


def check_fit(repository: Path, installation: Installation) -> None:
    """Compare what the repository asks for with the server's backends and release, and its engines with this machine.

    Raises:
        RepositoryError: names what is missing, what is there, and what to do.
    """
    _check_backends(repository, installation)
    _check_release(read_manifest(repository), installation)
    check_engines(repository)


def _check_backends(repository: Path, installation: Installation) -> None:
    present = installation.backends
    if present is None:
        return
    for model in model_names(repository):
        backend = _backend_of(repository / model / CONFIG)
        if backend is not None and backend not in present:
            other = _WITHOUT.get(backend, _ANYWHERE)
            raise RepositoryError(
                f"{model} of {repository} needs Triton's backend {backend!r}, and {installation.description} has "
                f"{', '.join(sorted(present))}; serve it in NVIDIA's container with --server path, or turn the "
                f"repository to what this one runs: tritonclip configure {repository} {other}"
            )


def _backend_of(config: Path) -> str | None:
    """The backend that a model runs in; None for an ensemble, which runs in none."""
    named = dict(_BACKEND.findall(config.read_text(encoding="utf-8")))
    platform = named.get("platform", "")
    return named.get("backend") or _OF_PLATFORM.get(platform, platform or None)


def _check_release(manifest: dict[str, Any], installation: Installation) -> None:
    settings = manifest.get("settings")
    wanted = str(settings.get("release", "")) if isinstance(settings, dict) else ""
    # As strings, because YY.MM sorts so.
    if wanted and installation.release and wanted > installation.release:
        raise RepositoryError(
            f"the configs are for tritonserver {wanted} or later, and {installation.description} is "
            f"{installation.release}, which would leave requests without answer; write them for it: tritonclip "
            f"configure DIR --release {installation.release}"
        )
