"""Changes a model repository where it stands: all of a change, or none of it."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tritonclip_export.errors import RepositoryError
from tritonclip_export.manifest import MANIFEST


def put_in_place(staging: Path, repository: Path, paths: Sequence[str], removed: Sequence[str] = ()) -> None:
    """Move files or folders, `paths` relative to both, from `staging`, the manifest last; undo it all on an error.

    What is `removed` goes without anything in its place.
    """
    old = staging / "old"
    gone = [path for path in (*paths, *removed) if (repository / path).exists()]
    moves = [(repository / path, old / path) for path in gone]
    moves += [(staging / path, repository / path) for path in paths]
    done: list[tuple[Path, Path]] = []
    try:
        for source, target in moves:
            target.parent.mkdir(parents=True, exist_ok=True)
            source.rename(target)
            done.append((source, target))
        (staging / MANIFEST).replace(repository / MANIFEST)
    except BaseException:
        for source, target in reversed(done):
            target.rename(source)
        raise


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write `files`, by their paths in `folder`."""
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


@contextmanager
def staged_beside(repository: Path, what: str) -> Iterator[Path]:
    """A folder beside `repository`, on the same disk, which is removed at the end.

    Raises:
        RepositoryError: the repository, or the directory that it is in, cannot be written to.
    """
    staging = repository.parent / f".{repository.name}.{what}-{os.getpid()}"
    try:
        staging.mkdir()
        yield staging
    except OSError as error:
        raise RepositoryError(
            f"{repository} or the directory it is in cannot be written to ({error}); give them your user, or copy the "
            "repository to where it can be changed"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def alone_in(repository: Path) -> Iterator[None]:
    """One at a time changes a repository; the others wait. The lock ends with the process."""
    handle = os.open(repository, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
