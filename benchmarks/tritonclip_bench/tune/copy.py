"""A model repository to try settings on, which shares the weights with the user's and leaves that as it is."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tritonclip_export.repository.configure import publish, stage
from tritonclip_export.repository.in_place import staged_beside
from tritonclip_export.repository.manifest import SIGNATURE, read_manifest
from tritonclip_export.repository.staging import claimed, sweep, unique
from tritonclip_export.settings import Settings

# Bytes from which a file is linked: weights and engines are, configs and code are small.
LINKED_FROM = 1 << 20
# A graph goes the way of its weights: ONNX Runtime reads none through a link that leads out of the graph's own folder.
GRAPH = ".onnx"


@contextmanager
def workspace(repository: Path) -> Iterator[Path]:
    """An empty folder on the disk of `repository` where that can be written, which is always removed at the end."""
    beside = os.access(repository.parent, os.W_OK)
    # Triton's DALI backend takes no other characters in a path.
    name = f".{repository.name}.tuning_{unique().replace('-', '_')}"
    parent = repository.parent if beside else Path(tempfile.gettempdir())
    sweep(parent / repository.name)
    with claimed(parent / name) as folder:
        yield folder


def copy(repository: Path, target: Path) -> Path:
    """Lay out `repository` once more at `target`: large files linked, all others, configs above all, copied."""
    # A changed copy is not what was signed.
    left_out = shutil.ignore_patterns("__pycache__", SIGNATURE)
    shutil.copytree(repository, target, copy_function=_link_or_copy, ignore=left_out)
    for folder in (target, *(path for path in target.rglob("*") if path.is_dir())):
        # Of a repository that may only be read, the copy is written to all the same.
        folder.chmod(0o755)
    return target


def apply(repository: Path, settings: Settings) -> None:
    """As `tritonclip configure`, on a copy: what is linked is not read again to prove it.

    Raises:
        tritonclip_export.errors.ExportError: the settings cannot be had.
    """
    with staged_beside(repository, "settings") as staging:
        manifest, written = stage(repository, read_manifest(repository), settings, staging)
        publish(repository, manifest, written, staging)


def _link_or_copy(source: str, target: str) -> None:
    if Path(source).stat().st_size < LINKED_FROM and Path(source).suffix != GRAPH:
        shutil.copyfile(source, target)
        return
    try:
        os.link(source, target, follow_symlinks=True)
    except OSError:
        # Another disk, or another user's file.
        Path(target).symlink_to(Path(source).resolve())
