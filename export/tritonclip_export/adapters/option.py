"""The option `--adapter`."""

from __future__ import annotations

from pathlib import Path

from tritonclip_export.errors import AdapterError


def parse_adapter(text: str) -> tuple[Path, float]:
    """Split "DIR=0.5" into path and weight; a path that exists as it stands is taken whole."""
    path, separator, weight = text.rpartition("=")
    if not separator or Path(text).exists():
        return Path(text), 1.0
    try:
        return Path(path), float(weight)
    except ValueError:
        if not Path(path).exists():
            return Path(text), 1.0
        raise AdapterError(f"--adapter {text}: the weight {weight!r} is not a number; write {path}=0.5") from None
