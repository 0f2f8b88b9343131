"""What stands in a folder that is to be compared with a list: every regular file, and whatever cannot be in a list."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# Bytes from which a file is large, as weights, engines and tokenizers are; code and configs never count as large.
LARGE = 1 << 20
# Whatever of a repository the server executes: TensorRT runs what an engine holds.
_EXECUTED = (".py", ".pbtxt", ".so")
_ENGINE = ".plan"
_HASHERS = 4
_CACHE = "is a cache of Python, which no export writes"


def look(folder: Path) -> tuple[dict[str, int], dict[str, str]]:
    """Paths relative to `folder` to bytes, of its regular files; and paths to a phrase, of what must not be there.

    Links are never followed: what they lead to can be exchanged from elsewhere.
    """
    files: dict[str, int] = {}
    faults: dict[str, str] = {}
    pending = [folder]
    while pending:
        current = pending.pop()
        try:
            with os.scandir(current) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            faults[_name(current, folder)] = f"cannot be read ({error.strerror})"
            continue
        if not found and current != folder:
            faults[_name(current, folder)] = "is an empty folder"
        for entry in found:
            path = Path(entry.path)
            fault = _fault(entry)
            if fault:
                faults[_name(path, folder)] = fault
            elif entry.is_dir(follow_symlinks=False):
                pending.append(path)
            else:
                files[_name(path, folder)] = entry.stat(follow_symlinks=False).st_size
    return files, faults


def _fault(entry: os.DirEntry[str]) -> str | None:
    if entry.is_symlink():
        return "is a link, and a repository holds none"
    if entry.name == "__pycache__" or entry.name.endswith((".pyc", ".pyo")):
        return _CACHE
    if not entry.is_dir(follow_symlinks=False) and not entry.is_file(follow_symlinks=False):
        return "is neither a file nor a folder"
    return None


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def is_executed(name: str) -> bool:
    """Whether the server runs what the file of this name holds, or is told by it what to run."""
    return name.endswith(_EXECUTED) or _ENGINE in name.rpartition("/")[2]


def hashes(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of files of `folder`, several at a time: one thread reads about 0.7 GB in a second.

    Raises:
        OSError: a file cannot be read.
    """
    wanted = list(names)
    with ThreadPoolExecutor(max_workers=_HASHERS) as threads:
        return dict(zip(wanted, threads.map(lambda name: file_hash(folder / name), wanted), strict=True))


def file_hash(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def compare(folder: Path, wanted: Mapping[str, str], names: Iterable[str]) -> list[str]:
    """Those of `names` whose SHA-256 is not the one `wanted`.

    Raises:
        OSError: a file cannot be read.
    """
    found = hashes(folder, names)
    return [name for name, digest in found.items() if digest != wanted[name]]
