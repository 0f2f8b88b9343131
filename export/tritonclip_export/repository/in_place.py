"""Changes a model repository where it stands: all of a change, or none of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tritonclip_export.errors import RepositoryError
from tritonclip_export.interrupts import ended_by_sigterm_as_by_ctrl_c
from tritonclip_export.repository.manifest import MANIFEST, SIGNATURE
from tritonclip_export.repository.staging import OLD, claimed, note, repository_lock, sweep, undo, unique

__all__ = ["commit", "repository_lock", "staged_beside", "unique", "write_files"]


def commit(staging: Path, repository: Path, paths: Sequence[str], removed: Sequence[str] = ()) -> None:
    """Move files or folders, `paths` relative to both, from `staging`, the manifest last; undo it all on an error.

    What is `removed` goes without anything in its place, and so does the signature of a manifest that was signed, where
    the new one is not.
    """
    signed, was_signed = (staging / SIGNATURE).exists(), (repository / SIGNATURE).exists()
    paths = [*paths, *([SIGNATURE] if signed else [])]
    removed = [*removed, *([SIGNATURE] if was_signed and not signed else [])]
    moves = [(repository / path, staging / OLD / path) for path in (*paths, *removed)]
    moves = [(source, target) for source, target in moves if source.exists()]
    moves += [(staging / path, repository / path) for path in paths]
    note(staging, repository, [*paths, *removed])
    try:
        for source, target in moves:
            target.parent.mkdir(parents=True, exist_ok=True)
            source.rename(target)
        (staging / MANIFEST).replace(repository / MANIFEST)
    except BaseException:
        # An interrupt after the last step finds all in place.
        if (staging / MANIFEST).exists():
            undo(staging, repository)
        raise
    if was_signed and not signed:
        print(
            f"note: {repository} was changed, and is not signed any more: tritonclip sign {repository} --key KEY",
            file=sys.stderr,
        )


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write `files`, by their paths in `folder`."""
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


@contextmanager
def staged_beside(repository: Path, what: str) -> Iterator[Path]:
    """A folder beside `repository`, on the same disk, which is removed at the end; SIGTERM ends as Ctrl-C does.

    What killed processes left there goes first.

    Raises:
        RepositoryError: the repository, or the directory that it is in, cannot be written to.
    """
    try:
        with ended_by_sigterm_as_by_ctrl_c():
            sweep(repository)
            with claimed(repository.parent / f".{repository.name}.{what}-{unique()}") as staging:
                yield staging
    except OSError as error:
        raise RepositoryError(
            f"{repository} or the directory it is in cannot be written to ({error}); give them your user, or copy the "
            "repository to where it can be changed"
        ) from error
