"""Can this machine run the engines of a repository? The standard library alone, so that any serving machine can ask."""

from __future__ import annotations

import ctypes
import ctypes.util
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tritonclip_export.errors import EngineError

ENGINES = "engines"
RUNTIME = "tensorrt"
_TIMEOUT_S = 30


@dataclass(frozen=True)
class Here:
    """What this machine has.

    Attributes:
        gpus: name and compute capability of each, such as ("NVIDIA H200", "9.0"); empty where the driver names none.
        tensorrt: version of the library that a server would load, else of the Python package; None without either.
    """

    gpus: Sequence[tuple[str, str]]
    tensorrt: str | None


def look() -> Here:
    """Ask the driver and TensorRT's library. The parts that meet a GPU were never run by the authors."""
    return Here(_gpus(), _library_version() or _package_version())


def records(manifest: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Every engine that a manifest records."""
    return [record for model in manifest.get(ENGINES, {}).values() for record in model]


def require(manifest: Mapping[str, Any], here: Here) -> str:
    """Refuse engines that this machine cannot run; returns one line about those that it can.

    Raises:
        EngineError: there is no GPU, or the engines are of another GPU or TensorRT; names both.
    """
    built = records(manifest)
    known = ", ".join(sorted({f"{one['gpu']} (compute capability {one['compute_capability']})" for one in built}))
    if not here.gpus:
        raise EngineError(
            f"the engines are for {known}, and no GPU is seen here: nvidia-smi is missing or names none; run where "
            "the GPU is, and in a container give it the GPU"
        )
    notes = []
    for name, capability in here.gpus:
        usable = [one for one in built if one["compute_capability"] == capability]
        if not usable:
            raise EngineError(
                f"the engines are for {known}, this machine has {name} (compute capability {capability}); {_REBUILD}"
            )
        for one in usable:
            _require_version(one, here.tensorrt)
        if name not in {one["gpu"] for one in usable}:
            notes.append(f"; those for {name} were built on {usable[0]['gpu']}, and may be slower than its own")
    tensorrt = here.tensorrt or "which is not seen here, so that its version was not compared"
    return f"engines for {', '.join(name for name, _ in here.gpus)}, TensorRT {tensorrt}{''.join(notes)}"


_REBUILD = "build them here with: tritonclip engine build DIR"


def _require_version(record: Mapping[str, Any], installed: str | None) -> None:
    if installed is None:
        return
    wanted, given = _parts(record["tensorrt"]), _parts(installed)
    # The library tells three parts, the Python package four.
    if wanted == given:
        return
    if record["options"]["version_compatible"] and wanted[0] == given[0] and wanted < given:
        return
    raise EngineError(
        f"{record['file']} was built by TensorRT {record['tensorrt']}, here is {installed}; serve with the release "
        f"that built it, or {_REBUILD}"
    )


def _parts(tensorrt: str) -> tuple[int, ...]:
    return tuple(int(part) for part in tensorrt.split(".")[:3])


def _gpus() -> list[tuple[str, str]]:
    return [(name, capability) for name, capability in query_gpus("name", "compute_cap")]


def query_gpus(*fields: str) -> list[tuple[str, ...]]:
    """What nvidia-smi says of each GPU, in its own words and units; nothing where it is missing or fails."""
    command = ("nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader")
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [tuple(cell.strip() for cell in line.split(",")) for line in done.stdout.splitlines() if not done.returncode]
    return [row for row in rows if len(row) == len(fields)]


def _library_version() -> str | None:
    """Of the libnvinfer that the loader finds, which a tritonserver loads too."""
    name = ctypes.util.find_library("nvinfer")
    try:
        number = int(ctypes.CDLL(name).getInferLibVersion()) if name else 0
    except (OSError, AttributeError):
        return None
    return decode_version(number) if number else None


def decode_version(number: int) -> str:
    """101601 to "10.16.1", as NvInferVersion.h makes it from 10 on; 8601 to "8.6.1", as before."""
    scale = 10000 if number >= 100000 else 1000
    return f"{number // scale}.{number % scale // 100}.{number % 100}"


def _package_version() -> str | None:
    try:
        return version("tensorrt")
    except PackageNotFoundError:
        return None
