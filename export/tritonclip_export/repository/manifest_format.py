"""What a manifest must be for everything that reads one: the types of what is looked up in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

_DIGEST = re.compile(r"[0-9a-f]{64}")
_VERSION = re.compile(r"[0-9]+(\.[0-9]+)*")
_ENGINE_TEXTS = ("file", "gpu", "compute_capability", "tensorrt")


def fault_of(manifest: Any) -> str | None:
    """What is wrong with what a manifest's JSON holds, in one phrase; None where nothing is."""
    if not isinstance(manifest, dict):
        return f"it holds {_kind(manifest)} where an object belongs"
    for name in ("spec", "files", "settings", "engines", "classifiers"):
        required = name in ("spec", "files")
        if (name in manifest or required) and not isinstance(manifest.get(name), dict):
            return f"`{name}` is {_kind(manifest.get(name))} where an object belongs"
    return _fault_of_files(manifest["files"]) or _fault_of_engines(manifest.get("engines", {}))


def _fault_of_files(files: Mapping[str, Any]) -> str | None:
    for name, digest in files.items():
        path = PurePosixPath(name)
        if not name or path.is_absolute() or ".." in path.parts or path.as_posix() != name:
            return f"`files` names {name!r}, which is no path inside the repository"
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            return f"`files` gives {name} {str(digest)[:80]!r} where a SHA-256 belongs"
    return None


def _fault_of_engines(engines: Mapping[str, Any]) -> str | None:
    for model, built in engines.items():
        for record in built if isinstance(built, list) else [built]:
            options = record.get("options") if isinstance(record, dict) else None
            if not isinstance(options, dict) or not isinstance(options.get("version_compatible"), bool):
                return f"`engines` of {model} holds no record of an engine"
            if not all(isinstance(record.get(key), str) for key in _ENGINE_TEXTS):
                return f"`engines` of {model} lacks one of {', '.join(_ENGINE_TEXTS)}"
            if not _VERSION.fullmatch(record["tensorrt"]):
                return f"`engines` of {model} gives TensorRT {record['tensorrt']!r} where a version belongs"
        if not isinstance(built, list):
            return f"`engines` of {model} is no list"
    return None


def _kind(value: Any) -> str:
    return {"NoneType": "nothing", "dict": "an object", "list": "a list", "str": "a text"}.get(
        type(value).__name__, "a number" if isinstance(value, (int, float)) else type(value).__name__
    )
