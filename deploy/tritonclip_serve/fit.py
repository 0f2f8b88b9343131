"""Refuses a repository that the server found here cannot serve, before it is started."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from tritonclip_serve.engines import check_engines
from tritonclip_serve.errors import RepositoryError
from tritonclip_serve.installation import Installation
from tritonclip_serve.repository import CONFIG, model_names, read_manifest

_BACKEND = re.compile(r'^(backend|platform):\s*"([^"]+)"', re.MULTILINE)
_DALI_PATH = re.compile(r"[A-Za-z0-9/._]+")
# How `configure` does without a backend.
_WITHOUT = {"dali": "--preprocess cpu"}
_WITHOUT_OTHERS = "--runtime onnxruntime-python"
# Platforms that are written in the place of a backend, and the backend that each needs.
_OF_PLATFORM = {"ensemble": None, "tensorrt_plan": "tensorrt"}


def check_fit(repository: Path, installation: Installation, served: Path | None = None) -> None:
    """Compare what the repository asks for with the server's backends and release, and its engines with this machine.

    Args:
        served: where the server will read it, if not there.

    Raises:
        RepositoryError: names what is missing, what is there, and what to do.
    """
    needed = {model: _backend_of(repository / model / CONFIG) for model in model_names(repository)}
    _check_backends(repository, needed, installation)
    _check_release(repository, installation)
    if "dali" in needed.values():
        _check_path_for_dali(served or repository)
    check_engines(repository)


def _check_backends(repository: Path, needed: Mapping[str, str | None], installation: Installation) -> None:
    present = installation.backends
    if present is None:
        return
    for model, backend in needed.items():
        if backend is not None and backend not in present:
            other = _WITHOUT.get(backend, _WITHOUT_OTHERS)
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


def _check_path_for_dali(repository: Path) -> None:
    """Triton's DALI backend loads nothing from a path with other characters, and says so in its verbose log alone."""
    path = str(repository)
    if not _DALI_PATH.fullmatch(path) or ".." in path:
        raise RepositoryError(
            f"Triton's DALI backend loads no model from {path}: plain letters, digits, / . and _ are allowed in the "
            "whole path; set TMPDIR to another folder, or turn the repository back: tritonclip configure DIR "
            "--preprocess cpu"
        )


def _check_release(repository: Path, installation: Installation) -> None:
    settings = read_manifest(repository).get("settings")
    wanted = str(settings.get("release", "")) if isinstance(settings, dict) else ""
    # As strings, because YY.MM sorts so.
    if wanted and installation.release and wanted > installation.release:
        raise RepositoryError(
            f"the configs are for tritonserver {wanted} or later, and {installation.description} is "
            f"{installation.release}; write them for it: tritonclip configure {repository} --release "
            f"{installation.release}"
        )
