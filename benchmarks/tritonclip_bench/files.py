"""Writing a result so that a reader sees all of it or nothing."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from tritonclip_bench.errors import BenchError


def write_json(path: Path, value: object) -> None:
    """Write `value` to `path` as indented JSON, through a temporary sibling and a rename.

    Raises:
        BenchError: the folder is missing or cannot be written.
    """
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    try:
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, prefix=f".{path.name}.", delete=False, encoding="utf-8"
        ) as temporary:
            temporary.write(text)
        Path(temporary.name).chmod(0o644)
        Path(temporary.name).replace(path)
    except OSError as error:
        raise BenchError(f"{path} cannot be written ({error.strerror}); give a file in a folder that exists") from None


def check_writable(path: Path) -> None:
    """Refuse, before the work, a result path that cannot be written after it.

    Raises:
        BenchError: the folder is missing or cannot be written, or `path` is a folder.
    """
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise BenchError(f"{path} cannot be written; give a file in a folder that exists")
