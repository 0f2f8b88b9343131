"""Writing a result, and refusing beforehand what cannot be written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from tritonclip_bench.errors import BenchError
from tritonclip_client.files import replacing


def write_json(path: Path, value: object) -> None:
    """Write `value` to `path` as indented JSON.

    Raises:
        BenchError: the folder is missing or cannot be written, or `path` is a folder.
    """
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`: whole or not at all.

    Raises:
        BenchError: the folder is missing or cannot be written, or `path` is a folder.
    """
    try:
        with replacing(path) as file:
            file.write(content)
    except OSError as error:
        raise BenchError(f"{path} cannot be written ({error.strerror}); give a file in a folder that exists") from None


def saving(path: Path | None) -> Callable[[object], None]:
    """Writes what it is given to `path` as `write_json` does; nothing, where `path` is None."""
    return lambda value: None if path is None else write_json(path, value)


def check_writable(path: Path) -> None:
    """Refuse, before the work, a result path that cannot be written after it.

    Raises:
        BenchError: the folder is missing or cannot be written, or `path` is a folder.
    """
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise BenchError(f"{path} cannot be written; give a file in a folder that exists")
