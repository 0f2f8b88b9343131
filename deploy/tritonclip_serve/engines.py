"""Refuses a repository whose towers are TensorRT engines that the server here could not run."""

from __future__ import annotations

from pathlib import Path

from tritonclip_export import local_gpu
from tritonclip_export.errors import EngineError
from tritonclip_export.settings import TENSORRT
from tritonclip_serve.errors import RepositoryError
from tritonclip_serve.repository import read_manifest

_VERSION_COMPATIBLE = "--backend-config=tensorrt,version-compatible=true"


def check_engines(repository: Path) -> None:
    """Where engines serve the towers, compare this GPU and this TensorRT with those that built them.

    Raises:
        RepositoryError: names both.
    """
    manifest = read_manifest(repository)
    if manifest["spec"].get("runtime") != TENSORRT:
        return
    try:
        local_gpu.require(manifest, local_gpu.detect())
    except EngineError as error:
        raise RepositoryError(str(error)) from error


def engine_arguments(repository: Path) -> tuple[str, ...]:
    """The flags that tritonserver needs to load the engines of a repository; none where no engine serves."""
    manifest = read_manifest(repository)
    served = manifest["spec"].get("runtime") == TENSORRT
    compatible = any(record["options"]["version_compatible"] for record in local_gpu.records(manifest))
    return (_VERSION_COMPATIBLE,) if served and compatible else ()
