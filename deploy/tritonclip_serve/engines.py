"""Refuses a repository that the server here could not run: TensorRT engines of another machine, or DALI."""

from __future__ import annotations

from pathlib import Path

from tritonclip_export.dali import recorded
from tritonclip_export.engine import here
from tritonclip_export.errors import EngineError
from tritonclip_serve.errors import RepositoryError
from tritonclip_serve.installation import Installation
from tritonclip_serve.repository import read_manifest


def check_engines(repository: Path, installation: Installation) -> None:
    """Where engines serve the towers, compare this GPU and this TensorRT with those that built them.

    Raises:
        RepositoryError: names both, or says that this server has no TensorRT backend.
    """
    manifest = read_manifest(repository)
    if manifest["spec"].get("runtime") != here.RUNTIME:
        return
    if not installation.runs_engines:
        raise RepositoryError(
            f"the towers of {repository} are TensorRT engines, and {installation.description} has no TensorRT "
            "backend; serve it in NVIDIA's container with --server path"
        )
    try:
        here.require(manifest, here.look())
    except EngineError as error:
        raise RepositoryError(str(error)) from error


def check_dali(repository: Path, installation: Installation) -> None:
    """Where DALI decodes pictures, the server has to have its backend.

    Raises:
        RepositoryError: it has not.
    """
    if recorded(read_manifest(repository)) == "dali" and not installation.runs_dali:
        raise RepositoryError(
            f"the pictures of {repository} are decoded by DALI, and {installation.description} has no DALI backend; "
            "serve it in NVIDIA's container with --server path, or export it with --preprocess cpu"
        )
