"""Folders beside a repository in which a change is made ready, those of killed processes, and the lock of a repository.

Whoever makes one holds its lock, which the kernel drops when the process ends, however it ends.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

# Of a repository that is being replaced: the old one, until the new one stands in its place.
OLD = "old"
_OURS = re.compile(r"(partial|old|settings|engines|classifier|tuning)[-_][0-9]+[-_][0-9a-f]{8}")
_JOURNAL = "journal.json"
_MANIFEST = "manifest.json"


def unique() -> str:
    """Unique suffix: process ids repeat across containers."""
    return f"{os.getpid()}-{secrets.token_hex(4)}"


@contextmanager
def claimed(folder: Path) -> Iterator[Path]:
    """Make `folder`, with its lock held inside, and remove it at the end, unless it was renamed.

    Raises:
        OSError: it cannot be made.
    """
    handle = _make(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def _make(folder: Path) -> int:
    while True:
        folder.mkdir()
        with suppress(FileNotFoundError):
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            # A file system without locks, such as some NFS: then nobody can take it for dead either.
            with suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
            if folder.exists() and os.path.samestat(os.fstat(handle), folder.stat()):
                return handle
            # Somebody who sweeps was here first.
            os.close(handle)


@contextmanager
def repository_lock(repository: Path) -> Iterator[None]:
    """Exclusive lock on a repository; other writers block. It ends with the process."""
    handle = _locked(repository)
    try:
        yield
    finally:
        os.close(handle)


def _locked(repository: Path) -> int:
    """A handle that holds the lock of the folder that stands at `repository`, which an export may replace meanwhile."""
    while True:
        handle = os.open(repository, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(handle), repository.stat()):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def sweep(repository: Path) -> None:
    """Remove what killed processes left beside `repository`; what they had half changed is as before afterwards."""
    for folder in _leftovers(repository):
        with suppress(OSError):
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _clear(folder, repository)
            finally:
                os.close(handle)


def _leftovers(repository: Path) -> list[Path]:
    prefix = f".{repository.name}."
    found = sorted(repository.parent.glob(f"{glob.escape(prefix)}*"))
    return [path for path in found if _OURS.fullmatch(path.name.removeprefix(prefix)) and path.is_dir()]


def _clear(folder: Path, repository: Path) -> None:
    if folder.name.startswith(f".{repository.name}.{OLD}") and not os.path.lexists(repository):
        # Killed between taking the old repository away and putting the new one there.
        folder.rename(repository)
        _say(f"{repository} is back: an export that replaced it was killed")
        return
    if _is_unfinished(folder, repository):
        with repository_lock(repository):
            undo(folder, repository)
        _say(f"a change of {repository} was killed halfway, and is undone")
    shutil.rmtree(folder, ignore_errors=True)


def _say(what: str) -> None:
    print(f"note: {what}", file=sys.stderr)


def cut_short(repository: Path) -> bool:
    """Whether a killed process left `repository` half changed."""
    return any(_is_unfinished(folder, repository) for folder in _leftovers(repository))


def note(staging: Path, repository: Path, paths: Sequence[str]) -> None:
    """Write down what will be moved between `staging` and `repository`, so that it can be undone."""
    gone = [path for path in paths if os.path.lexists(repository / path)]
    journal = {"manifest": _digest(repository / _MANIFEST), "gone": gone, "added": sorted({*paths} - {*gone})}
    (staging / _JOURNAL).write_text(json.dumps(journal), encoding="utf-8")


def _is_unfinished(staging: Path, repository: Path) -> bool:
    """Its manifest goes last; and a repository that somebody has put there since is left alone."""
    if not (staging / _MANIFEST).is_file():
        return False
    try:
        journal = json.loads((staging / _JOURNAL).read_text(encoding="utf-8"))
        return bool(journal["manifest"] == _digest(repository / _MANIFEST))
    except (OSError, ValueError):
        return False


def undo(staging: Path, repository: Path) -> None:
    """Put back what `note` wrote down, from whatever point on."""
    journal = json.loads((staging / _JOURNAL).read_text(encoding="utf-8"))
    for path in journal["gone"]:
        if os.path.lexists(staging / OLD / path):
            _remove(repository / path)
            (staging / OLD / path).rename(repository / path)
    for path in journal["added"]:
        if not os.path.lexists(staging / path):
            _remove(repository / path)
        # Triton takes every folder for a model.
        for folder in list((repository / path).parents)[: path.count("/")]:
            with suppress(OSError):
                folder.rmdir()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
