"""Writes a model repository: beside its place first, then by renaming, so that nobody sees half of one."""

from __future__ import annotations

import errno
import io
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from PIL import Image

from tritonclip_export.checkpoints.tokenization import Tokenization
from tritonclip_export.errors import RepositoryError
from tritonclip_export.parity.probes import to_uint8, transform_images
from tritonclip_export.repository.dali import DALI_ONLY
from tritonclip_export.repository.in_place import repository_lock, write_files
from tritonclip_export.repository.manifest import MANIFEST
from tritonclip_export.repository.staging import OLD, claimed, sweep, unique
from tritonclip_export.repository.templates import templates

WARMUP_TEXT = "a photo of a cat"
_BYTES_LENGTH_PREFIX = 4
# What DALI needs is written by `dali_files`, where it is asked for.
_TEMPLATES_ONLY = shutil.ignore_patterns(
    *("__pycache__", "*.pyc", "*.onnx", "*.onnx.data"), *(Path(path).name for path in DALI_ONLY)
)
# What a path or a disk that cannot take it answers; other errors are faults of this program.
_REFUSED_BY_DISK = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
    *(errno.ENOTDIR, errno.ENAMETOOLONG),
}
# Of numpy's `tofile`, which says no errno.
_CUT_SHORT = re.compile(r"problem writing element|\d+ requested and \d+ written")


def check_output(out: Path, *, force: bool) -> None:
    """Refuse to write over anything, or, with `force`, over anything that is not a model repository.

    What killed exports left beside it goes, or comes back.

    Raises:
        RepositoryError: says what stands there and what to do.
    """
    sweep(out.resolve())
    around = next((folder for folder in out.resolve().parents if (folder / MANIFEST).is_file()), None)
    if around is not None:
        raise RepositoryError(f"{out} is inside the model repository {around}; give a directory outside it")
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

    What was made on the way, parent directories too, is removed when it ends otherwise.

    Raises:
        RepositoryError: the parent of `out` cannot be written to, or its disk is full.
    """
    out = out.absolute()
    absent = [folder for folder in out.parents if not folder.exists()]
    try:
        with _claimed_beside(out) as staging:
            _copy_templates(staging, out)
            yield staging
            _replace(staging, out)
    except BaseException as error:
        _clear(absent)
        if isinstance(error, OSError) and (error.errno in _REFUSED_BY_DISK or _CUT_SHORT.match(str(error))):
            raise _not_written(out, error) from error
        raise


@contextmanager
def _claimed_beside(out: Path) -> Iterator[Path]:
    with ExitStack() as stack:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            folder = stack.enter_context(claimed(out.parent / f".{out.name}.partial-{unique()}"))
        except OSError as error:
            raise _not_written(out, error) from error
        yield folder


def _copy_templates(staging: Path, out: Path) -> None:
    try:
        shutil.copytree(templates(), staging, ignore=_TEMPLATES_ONLY, dirs_exist_ok=True)
    except shutil.Error as error:
        # It goes on after an error, and tells of all of them.
        raise _not_written(out, error.args[0][0][2]) from error
    except OSError as error:
        raise _not_written(out, error) from error


def _not_written(out: Path, why: object) -> RepositoryError:
    return RepositoryError(
        f"{out} cannot be written ({why}), and nothing was kept; free space there, or give another directory"
    )


def _clear(made: Sequence[Path]) -> None:
    """Remove the folders that were `made`, the innermost first, as far as they are empty."""
    for folder in made:
        with suppress(OSError):
            folder.rmdir()


def write_warmups(repository: Path, preprocess_cfg: Mapping[str, Any], tokenization: Tokenization, length: int) -> None:
    """Give the towers the same image and text, as pixels and ids, that warm up the models before them.

    `length` is that of the ids, and holds the warm-up text.
    """
    encoded = (repository / "preprocess" / "warmup" / "image").read_bytes()[_BYTES_LENGTH_PREFIX:]
    with Image.open(io.BytesIO(encoded)) as image:
        pixels = to_uint8(transform_images([image], dict(preprocess_cfg)), dict(preprocess_cfg))
    ids = tokenization([WARMUP_TEXT])[:, :length].contiguous()
    made = {"image_encoder/warmup/pixels": pixels, "text_encoder/warmup/input_ids": ids}
    write_files(repository, {path: tensor.numpy().tobytes() for path, tensor in made.items()})


def _replace(staging: Path, out: Path) -> None:
    old = out.parent / f".{out.name}.{OLD}-{unique()}"
    # Whoever is changing the repository that stands there ends first.
    with repository_lock(out) if out.exists() else nullcontext():
        if out.exists():
            out.rename(old)
        try:
            staging.rename(out)
        except BaseException:
            if old.exists():
                old.rename(out)
            raise
    shutil.rmtree(old, ignore_errors=True)
