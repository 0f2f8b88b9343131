"""Writes a model repository: beside its place first, then by renaming, so that nobody sees half of one."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from tritonclip_export.errors import RepositoryError
from tritonclip_export.manifest import MANIFEST
from tritonclip_export.probes import to_uint8, transform_pictures
from tritonclip_export.tokenization import Tokenization

WARMUP_TEXT = "a photo of a cat"
_BYTES_LENGTH_PREFIX = 4


def templates() -> Path:
    """The checked-in `model_repository/`: of the source tree, or the copy inside an installed package."""
    here = Path(__file__).resolve()
    candidates = (here.parents[2] / "model_repository", here.parent / "_model_repository")
    for folder in candidates:
        if (folder / "clip" / "config.pbtxt").is_file():
            return folder
    raise RepositoryError(f"tritonclip is installed without its model_repository (looked in {candidates})")


def check_output(out: Path, *, force: bool) -> None:
    """Refuse to write over anything, or, with `force`, over anything that is not a model repository.

    Raises:
        RepositoryError: says what stands there and what to do.
    """
    if not out.exists() and not out.is_symlink():
        return
    if out.is_dir() and not any(out.iterdir()):
        return
    if not (out / MANIFEST).is_file():
        raise RepositoryError(f"{out} exists and is no model repository; give a directory that does not exist yet")
    if not force:
        raise RepositoryError(
            f"{out} already holds a model repository; give another directory, or --force to replace it"
        )


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A copy of the templates beside `out`, which takes its place when the block ends well.

    Raises:
        RepositoryError: the parent of `out` cannot be written to.
    """
    out = out.absolute()
    staging = out.parent / f".{out.name}.partial-{os.getpid()}"
    try:
        _copy_templates(staging)
        yield staging
        _replace(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _copy_templates(staging: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc", "*.onnx", "*.onnx.data")
    try:
        staging.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(templates(), staging, ignore=ignored)
    except OSError as error:
        raise RepositoryError(f"{staging.parent} cannot be written to ({error}); give another directory") from error


def write_warmups(repository: Path, preprocess_cfg: Mapping[str, Any], tokenization: Tokenization, length: int) -> None:
    """Give the towers the same picture and text, as pixels and ids, that warm up the models before them.

    `length` is that of the ids, and holds the warm-up text.
    """
    encoded = (repository / "preprocess" / "warmup" / "picture").read_bytes()[_BYTES_LENGTH_PREFIX:]
    with Image.open(io.BytesIO(encoded)) as image:
        pixels = to_uint8(transform_pictures([image], dict(preprocess_cfg)), dict(preprocess_cfg))
    _write_bytes(repository / "image_encoder" / "warmup" / "pixels", pixels.numpy().tobytes())
    ids = tokenization([WARMUP_TEXT])[:, :length].contiguous()
    _write_bytes(repository / "text_encoder" / "warmup" / "input_ids", ids.numpy().tobytes())


def _replace(staging: Path, out: Path) -> None:
    old = out.parent / f".{out.name}.old-{os.getpid()}"
    if out.exists():
        out.rename(old)
    try:
        staging.rename(out)
    except BaseException:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _write_bytes(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
