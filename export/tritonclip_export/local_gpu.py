"""Can this machine run the engines of a repository? The standard library alone, so that any serving machine can ask."""

from __future__ import annotations

import ctypes
import ctypes.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import takewhile
from pathlib import Path
from typing import Any

from tritonclip_export.errors import EngineError
from tritonclip_export.settings import ONNXRUNTIME, TENSORRT

# UUID, name, compute capability, and what else was asked for.
Gpu = tuple[str, ...]

ENGINES = "engines"
_TIMEOUT_S = 30


@dataclass(frozen=True)
class LocalGpus:
    """What this machine has.

    Attributes:
        gpus: name and compute capability of each that CUDA may use, such as ("NVIDIA H200", "9.0"); empty where the
            driver names none, or CUDA_VISIBLE_DEVICES hides all.
        tensorrt: version of the library that a server would load, else of the Python package; None without either.
    """

    gpus: Sequence[tuple[str, str]]
    tensorrt: str | None


def detect() -> LocalGpus:
    """Ask the driver and TensorRT's library. The parts that meet a GPU were never run by the authors."""
    return LocalGpus([(gpu[1], gpu[2]) for gpu in visible_gpus()], _library_version() or _package_version())


def records(manifest: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Every engine that a manifest records."""
    return [record for model in manifest.get(ENGINES, {}).values() for record in model]


def require(manifest: Mapping[str, Any], here: LocalGpus) -> str:
    """Refuse engines that this machine cannot run; returns one line about those that it can.

    Raises:
        EngineError: there is no GPU, or the engines are of another GPU or TensorRT; names both.
    """
    built = records(manifest)
    known = ", ".join(sorted({f"{one['gpu']} (compute capability {one['compute_capability']})" for one in built}))
    if not here.gpus:
        raise EngineError(
            f"the engines are for {known}, and no GPU is seen here: nvidia-smi is missing or names none, or "
            "CUDA_VISIBLE_DEVICES hides them; run where the GPU is, and in a container give it the GPU"
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


def _query_gpus(*fields: str) -> list[list[str]]:
    """What nvidia-smi says of each GPU, in its own words and units; nothing where it is missing or fails.

    In the driver's order, which is the order of the PCI bus. A cell that holds a comma comes as two.
    """
    command = ("nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader")
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if done.returncode == 0]


def visible_gpus(*fields: str) -> list[Gpu]:
    """Of every GPU that CUDA may use its UUID, name and compute capability, and `fields` of nvidia-smi."""
    behind = 1 + len(fields)
    rows = [row for row in _query_gpus("uuid", "name", "compute_cap", *fields) if len(row) >= 2 + behind]
    return _visible([(row[0], ", ".join(row[1:-behind]), *row[-behind:]) for row in rows], os.environ)


def _visible(gpus: list[Gpu], environment: Mapping[str, str]) -> list[Gpu]:
    """Those that CUDA_VISIBLE_DEVICES leaves, in its order; all of them where it cannot be told here which it means.

    By the CUDA programming guide: indices or UUIDs (their beginnings suffice), up to the first that does not exist.
    """
    given = environment.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return gpus
    words = [word.strip() for word in given.split(",")]
    # CUDA counts the fastest first unless told otherwise; a MIG instance has a UUID of its own.
    by_bus = len({gpu[1:3] for gpu in gpus}) == 1 or environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    if any(word.startswith("MIG-") or (word.isdecimal() and not by_bus) for word in words):
        return gpus
    return [gpu for gpu in takewhile(bool, (_named(word, gpus) for word in words)) if gpu]


def _named(word: str, gpus: list[Gpu]) -> Gpu | None:
    if word.isdecimal():
        return gpus[int(word)] if int(word) < len(gpus) else None
    found = [gpu for gpu in gpus if word.startswith("GPU-") and gpu[0].startswith(word)]
    return found[0] if len(found) == 1 else None


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


def main(arguments: Sequence[str]) -> int:
    """Exit status 1 where engines should be built: none that run here serve the repository, nor another GPU runtime.

    python -m tritonclip_export.local_gpu DIR
    """
    try:
        (folder,) = arguments
        manifest = json.loads((Path(folder) / "manifest.json").read_text(encoding="utf-8"))
        runtime = manifest["spec"]["runtime"]
        # Nobody gets it without asking for it, so that no engine is to take its place.
        if runtime == ONNXRUNTIME:
            print(f"{folder} is to be served by {runtime}, and needs no engine")
            return 0
        if runtime != TENSORRT:
            raise EngineError("no engines serve it yet")
        print(require(manifest, detect()))
    except (EngineError, OSError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
