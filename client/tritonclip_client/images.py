"""Images as they travel: encoded bytes. What is encoded already goes as it is; pixels become PNG, losslessly."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .errors import InvalidImageError, InvalidInputError
from .items import Item
from .options import MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    from PIL import Image

ImageInput: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | npt.NDArray[Any] | Image.Image"

_ALLOWED = "give a path (str or Path), the bytes of an encoded image, a PIL image, or a uint8 array [H, W, 3] or [H, W]"
# Level 1 is about five times as fast as Pillow's default, for files a tenth larger.
_PNG_LEVEL = 1
# The modes that PNG stores without loss; every other becomes RGB, as checkpoints' own transforms make it.
_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})
_EXIF_ORIENTATION = 0x0112
# Names and shapes need little; this leaves plenty.
_LARGEST = MAX_MESSAGE_BYTES - 2**16


def check_images(images: Iterable[ImageInput]) -> Iterable[ImageInput]:
    """Refuse what can be refused before the first request: every item of a list, nothing yet of an iterator.

    Raises:
        InvalidInputError: not a list of images, or an empty one.
        InvalidImageError: a missing or empty file, a directory, empty bytes, or no image at all.
    """
    if _is_one_image(images) or not isinstance(images, Iterable):
        raise InvalidInputError(f"{_named(images)} given as images; give a list, even of one")
    if isinstance(images, (Sequence, np.ndarray)):
        if not len(images):
            raise _no_images()
        for index, image in enumerate(images):
            _check(index, image)
    return images


def encode_images(images: Iterable[ImageInput]) -> Iterator[Item]:
    """Encode images one at a time, as they are asked for; files are read only then.

    Raises:
        InvalidInputError: there was none.
        InvalidImageError: as `check_images`, or one that cannot be read or encoded.
    """
    index = -1
    for index, image in enumerate(images):
        _check(index, image)
        yield Item(index, _encode(index, image), _source(image))
    if index < 0:
        raise _no_images()


def _is_one_image(images: object) -> bool:
    if isinstance(images, np.ndarray):
        return images.ndim < 4
    return isinstance(images, (str, os.PathLike, bytes, bytearray, memoryview)) or _is_pil(images)


def _check(index: int, image: object) -> None:
    problem = _problem(image)
    if problem:
        raise InvalidImageError(index, problem, _source(image))


def _problem(image: object) -> str | None:
    if isinstance(image, (str, os.PathLike)):
        return _file_problem(Path(image))
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _size_problem(memoryview(image).nbytes, "bytes")
    if isinstance(image, np.ndarray):
        return _array_problem(image)
    return None if _is_pil(image) else f"{_named(image)} given; {_ALLOWED}"


def _file_problem(path: Path) -> str | None:
    try:
        if path.is_dir():
            return "is a directory; give the image files in it"
        return _size_problem(path.stat().st_size, "file")
    except FileNotFoundError:
        return "no such file; a str is always a path, encoded images are given as bytes"
    except (OSError, ValueError) as error:
        return f"cannot be read ({error}); give a readable image file"


def _size_problem(size: int, what: str) -> str | None:
    if not size:
        return f"empty {what} given; give an encoded image (JPEG, PNG, WebP, ...)"
    if size > _LARGEST:
        return f"{what} of {size} bytes given; a message holds at most {_LARGEST}; give a smaller image"
    return None


def _array_problem(array: npt.NDArray[Any]) -> str | None:
    shaped = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if array.dtype == np.uint8 and shaped and array.size:
        return None
    return f"{_named(array)} given; {_ALLOWED}"


def _encode(index: int, image: Any) -> bytes:
    try:
        if isinstance(image, (str, os.PathLike)):
            return Path(image).read_bytes()
        if isinstance(image, (bytes, bytearray, memoryview)):
            return bytes(image)
        if isinstance(image, np.ndarray):
            return _png(_from_array(image))
        return _png(image)
    # Pillow reads lazily, so a damaged file may fail in many ways only here.
    except (OSError, ValueError, SyntaxError) as error:
        reason = f"cannot be read ({error}); give a whole, readable image"
        raise InvalidImageError(index, reason, _source(image)) from error


def _from_array(array: npt.NDArray[np.uint8]) -> Image.Image:
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(array))


def _png(image: Image.Image) -> bytes:
    exif = image.getexif()
    rotated = {"exif": exif} if _EXIF_ORIENTATION in exif else {}
    storable = image if image.mode in _PNG_MODES else image.convert("RGB")
    buffer = BytesIO()
    storable.save(buffer, "PNG", compress_level=_PNG_LEVEL, **rotated)
    return buffer.getvalue()


def _is_pil(image: object) -> bool:
    # Whoever has a PIL image has imported PIL; this module need not.
    pil = sys.modules.get("PIL.Image")
    return pil is not None and isinstance(image, pil.Image)


def _source(image: object) -> str | None:
    return os.fspath(image) if isinstance(image, (str, os.PathLike)) else None


def _named(image: object) -> str:
    if isinstance(image, np.ndarray):
        return f"{image.dtype} array {list(image.shape)}"
    if isinstance(image, (str, os.PathLike)):
        return f"the path {os.fspath(image)!r}"
    return f"one {type(image).__name__}" if _is_pil(image) else type(image).__name__


def _no_images() -> InvalidInputError:
    return InvalidInputError("no images given; give at least one")
