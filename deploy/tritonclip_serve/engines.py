"""Refuses a repository whose towers are TensorRT engines that the server here could not run."""

from __future__ import annotations

from pathlib import Path

from tritonclip_export.engine import here
from tritonclip_export.errors import EngineError
from tritonclip_serve.errors import RepositoryError
from tritonclip_serve.repository import read_manifest

_VERSION_COMPATIBLE = "--backend-config=tensorrt,version-compatible=true"


def check_engines(repository: Path) -> None:
    """Where engines serve the towers, compare this GPU and this TensorRT with those that built them.

    Raises:
        RepositoryError: names both.
    """
    manifest = read_manifest(repository)
    if manifest["spec"].get("runtime") != here.RUNTIME:
        return
    try:
        here.require(manifest, here.look())
    except EngineError as error:
        raise RepositoryError(str(error)) from error


def engine_arguments(repository: Path) -> tuple[str, ...]:
    """The flags that tritonserver needs to load the engines of a repository; none where no engine serves."""
    manifest = read_manifest(repository)
    served = manifest["spec"].get("runtime") == here.RUNTIME
    compatible = any(record["options"]["version_compatible"] for record in here.records(manifest))
    return (_VERSION_COMPATIBLE,) if served and compatible else ()
