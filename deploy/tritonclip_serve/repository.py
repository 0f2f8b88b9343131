"""What the starter has to know of a model repository before a server reads it."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritonclip_export.errors import ExportError
from tritonclip_export.repository import manifest
from tritonclip_export.repository.manifest import MANIFEST
from tritonclip_serve.errors import RepositoryError

CONFIG = "config.pbtxt"
ENTRY_POINTS = ("embed_image", "embed_text")
_PYTHON = re.compile(r'^\s*backend\s*:\s*"python"', re.MULTILINE)
_STEP = re.compile(r'\bmodel_name\s*:\s*"([^"]+)"')
EXPORT_HINT = "write one with: tritonclip export CHECKPOINT DIR"


@dataclass(frozen=True)
class Identity:
    """Which model a repository serves.

    Attributes:
        name: the name given at export, or the repository's folder where the manifest has none.
        fingerprint: hash of merged weights, spec and precision; empty where the manifest has none.
    """

    name: str
    fingerprint: str


def check_repository(repository: Path) -> None:
    """Refuse what a server could not serve.

    Raises:
        RepositoryError: the directory or one of the files that every repository has is missing.
    """
    if not repository.is_dir():
        found = "is a file" if repository.exists() else "does not exist"
        raise RepositoryError(f"{repository} {found}; expected a model repository directory; {EXPORT_HINT}")
    wanted = [repository / MANIFEST, *(repository / model / CONFIG for model in ENTRY_POINTS)]
    missing = [str(path.relative_to(repository)) for path in wanted if not path.is_file()]
    if missing:
        raise RepositoryError(
            f"{repository} is not a model repository of tritonclip: it has no {', no '.join(missing)}; {EXPORT_HINT}"
        )


def read_identity(repository: Path) -> Identity:
    """Read the name and the fingerprint of the served model from the manifest.

    Raises:
        RepositoryError: the manifest is none, or damaged.
    """
    spec = read_manifest(repository)["spec"]
    return Identity(str(spec.get("name") or repository.name), str(spec.get("fingerprint") or ""))


def read_manifest(repository: Path) -> dict[str, Any]:
    """Read the manifest.

    Raises:
        RepositoryError: it is none, or damaged.
    """
    try:
        return manifest.read_manifest(repository)
    except ExportError as error:
        raise RepositoryError(str(error)) from error


def model_names(repository: Path) -> tuple[str, ...]:
    """The models that a server will load: the folders that have a config."""
    return tuple(sorted(path.parent.name for path in repository.glob(f"*/{CONFIG}")))


def root_models(repository: Path) -> tuple[str, ...]:
    """The models that are no step of an ensemble: where calls come in."""
    steps = {name for names in _steps(repository).values() for name in names}
    return tuple(name for name in model_names(repository) if name not in steps)


def with_dependents(repository: Path, models: Collection[str]) -> frozenset[str]:
    """Some models, and every ensemble that cannot answer without them."""
    steps, found = _steps(repository), set(models)
    while more := {name for name, names in steps.items() if found & names} - found:
        found |= more
    return frozenset(found)


def python_models(repository: Path) -> frozenset[str]:
    """The models that have processes of their own."""
    return frozenset(name for name, config in _configs(repository).items() if _PYTHON.search(config))


def _steps(repository: Path) -> dict[str, set[str]]:
    """The models that each ensemble runs."""
    return {name: set(_STEP.findall(config)) for name, config in _configs(repository).items()}


def _configs(repository: Path) -> dict[str, str]:
    """The text of each model's config."""
    return {path.parent.name: path.read_text(encoding="utf-8") for path in repository.glob(f"*/{CONFIG}")}
