"""Changes a model repository where it stands: all of a change, or none of it."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tritonclip_export.errors import RepositoryError
from tritonclip_export.interrupts import ended_by_sigterm_as_by_ctrl_c
from tritonclip_export.manifest import MANIFEST


def put_in_place(staging: Path, repository: Path, paths: Sequence[str], removed: Sequence[str] = ()) -> None:
    """Move files or folders, `paths` relative to both, from `staging`, the manifest last; undo it all on an error.

    What is `removed` goes without anything in its place.
    """
    old = staging / "old"
    gone = [path for path in (*paths, *removed) if (repository / path).exists()]
    moves = [(repository / path, old / path) for path in gone]
    moves += [(staging / path, repository / path) for path in paths]
    begun: list[tuple[Path, Path]] = []
    made: list[Path] = []
    try:
        for source, target in moves:
            absent = [folder for folder in target.parents if not folder.exists()]
            made = [*absent, *made]
            target.parent.mkdir(parents=True, exist_ok=True)
            # Noted before it is moved: an interrupt may come in between.
            begun.append((source, target))
            source.rename(target)
        (staging / MANIFEST).replace(repository / MANIFEST)
    except BaseException:
        if not (staging / MANIFEST).exists():
            # An interrupt after the last step: all is in place.
            raise
        for source, target in reversed(begun):
            if not source.exists():
                target.rename(source)
        # Triton takes every folder for a model.
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
        raise


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write `files`, by their paths in `folder`."""
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


@contextmanager
def staged_beside(repository: Path, what: str) -> Iterator[Path]:
    """A folder beside `repository`, on the same disk, which is removed at the end; SIGTERM ends as Ctrl-C does.

    Raises:
        RepositoryError: the repository, or the directory that it is in, cannot be written to.
    """
    staging = repository.parent / f".{repository.name}.{what}-{unique()}"
    try:
        with ended_by_sigterm_as_by_ctrl_c():
            staging.mkdir()
            yield staging
    except OSError as error:
        raise RepositoryError(
            f"{repository} or the directory it is in cannot be written to ({error}); give them your user, or copy the "
            "repository to where it can be changed"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def unique() -> str:
    """A part of a name that no other process has: in containers their numbers repeat."""
    return f"{os.getpid()}-{secrets.token_hex(4)}"


@contextmanager
def alone_in(repository: Path) -> Iterator[None]:
    """One at a time changes a repository; the others wait. The lock ends with the process."""
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
