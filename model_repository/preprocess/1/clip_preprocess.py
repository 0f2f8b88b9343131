"""Encoded images to the pixels that the image tower was trained on: decode, orientation, resize, crop, RGB.

The reference is open_clip's `image_transform` on Pillow, or the processor of transformers. Colour JPEG and every
other RGB or grey image takes a faster way that stays within one level of it; whatever is not proven to, Pillow does.
"""

from __future__ import annotations

import ctypes
import io
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import simplejpeg
from clip_geometry import Geometry, plan
from clip_patches import patched_size, to_rows
from clip_resize import resize_image, resize_pixels
from clip_settings import FORMATS, INTERPOLATIONS, ImageError, ImageSettings, allowed, check_size, settings_from
from clip_weight import weigh
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

__all__ = [
    "COUNTS",
    "ImageError",
    "ImageSettings",
    "Spent",
    "keep_memory",
    "preprocess",
    "preprocess_batch",
    "settings_from",
]

Pixels = npt.NDArray[np.uint8]

_JPEG_COLORS = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# The same, without a copy.
_TURNED: dict[int, Callable[[Pixels], Pixels]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels),
}
# Of a decoder of Pillow's that got no memory; it raises OSError.
_MEMORY_WORDS = ("out of memory", "decoder error -9")

# Of mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

_threads = threading.local()
SCRATCH_BYTES = 1 << 24

# By the name of a counter of `Spent`, what it counts.
COUNTS = {
    "tritonclip_preprocess_images_total": "Images that this model decoded and resized",
    "tritonclip_preprocess_decode_seconds_total": "Seconds of reading and decoding them",
    "tritonclip_preprocess_resize_seconds_total": "Seconds of turning, resizing and cropping them, and of their colors",
}

# The pixel limit is this module's, checked before anything is decoded, with a message for the caller.
Image.MAX_IMAGE_PIXELS = None


@dataclass
class Spent:
    """What images have cost so far, in seconds; of one thread."""

    images: int = 0
    decode_s: float = 0.0
    resize_s: float = 0.0

    def counts(self) -> dict[str, float]:
        """By the names in COUNTS."""
        return dict(zip(COUNTS, (self.images, self.decode_s, self.resize_s), strict=True))


def keep_memory() -> None:
    """Have this process keep freed memory, up to 64 MB, for the next image: fresh pages cost time."""
    with suppress(OSError, AttributeError):  # another C library than glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(_M_TRIM_THRESHOLD, 64 << 20)


def preprocess_batch(images: Sequence[bytes], settings: ImageSettings) -> Pixels:
    """Pixels of every image, uint8 [B, H, W, 3], or the rows of `clip_patches`.

    Raises:
        ImageError: an image is refused; the message begins with its index, `image[3]: `.
    """
    pixels = np.empty((len(images), *settings.pixel_shape), np.uint8)
    for index, encoded in enumerate(images):
        try:
            pixels[index] = preprocess(encoded, settings)
        except ImageError as error:
            raise ImageError(f"image[{index}]: {error}") from error
    return pixels


def preprocess(encoded: bytes, settings: ImageSettings, spent: Spent | None = None) -> Pixels:
    """Pixels of one image, uint8 [H, W, 3], or the rows of `clip_patches`; `spent` is counted up.

    Raises:
        ImageError: too large, empty, of no known format, cut off or damaged.
    """
    begun = time.perf_counter()
    with open_image(encoded, settings) as image:
        try:
            decoded = _decode(image, encoded)
            decoded_at = time.perf_counter()
            pixels = _shape(turn(decoded, orientation_of(image), settings.exif), settings)
            pixels = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
            if settings.resize_mode == "naflex":
                pixels = to_rows(pixels, settings.patch_size, settings.max_num_patches)
            if spent is not None:
                spent.images += 1
                spent.decode_s += decoded_at - begun
                spent.resize_s += time.perf_counter() - decoded_at
            return pixels
        except (ImageError, MemoryError):
            raise
        except Exception as error:
            if any(words in str(error) for words in _MEMORY_WORDS):
                raise MemoryError(str(error)) from error
            raise _damaged(image, error) from error


def open_image(encoded: bytes, settings: ImageSettings) -> Image.Image:
    """Read the header, and nothing but the header.

    Raises:
        ImageError: it is empty, beyond a limit, or no image.
    """
    # Pillow's own way to the header is not short for every file.
    weigh(encoded, settings)
    try:
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{len(encoded)} bytes that begin with {encoded[:12]!r} and are no image; {allowed()}; "
            "send the bytes of an image file"
        ) from error
    except MemoryError:
        raise
    except Exception as error:
        raise ImageError(f"an image whose header is damaged ({error}); {allowed()}; send the file again") from error
    check_size(image.format, image.size, settings)
    return image


def _decode(image: Image.Image, encoded: bytes) -> Image.Image | Pixels:
    """All pixels of the image, as an array [H, W, 3 or 1] where the fast way may take it."""
    if image.format in ("JPEG", "MPO") and image.mode in _JPEG_COLORS:
        pixels = _decode_jpeg(image, encoded)
        if pixels is not None and image.mode != "CMYK":
            return pixels
    image.load()
    return image


def _decode_jpeg(image: Image.Image, encoded: bytes) -> Pixels | None:
    """Pixels as Pillow decodes them, to the bit, until this thread decodes again; None where Pillow should do it.

    Raises:
        ImageError: part of the image's data is missing; Pillow would fill it with grey.
    """
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(encoded, colorspace=_JPEG_COLORS[image.mode], buffer=_scratch(image))
    except ValueError as error:
        if "premature" in str(error).lower():
            raise _damaged(image, error) from error
        return None
    return pixels


def _scratch(image: Image.Image) -> bytearray | None:
    """This thread's memory for decoded pixels: fresh memory for each image costs a tenth of the decoding."""
    size = image.width * image.height * len(image.getbands())
    if size > SCRATCH_BYTES:
        return None
    buffer: bytearray = getattr(_threads, "scratch", bytearray())
    if len(buffer) < size:
        buffer = _threads.scratch = bytearray(size)
    return buffer


def orientation_of(image: Image.Image) -> int | None:
    """EXIF orientation, 1 to 8; a damaged EXIF block says nothing about the pixels, and is passed over."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:
        return None


def turn(image: Image.Image | Pixels, orientation: int | None, exif: str) -> Image.Image | Pixels:
    if exif == "ignore" or orientation not in _UPRIGHT:
        return image
    if isinstance(image, Image.Image):
        return image.transpose(_UPRIGHT[orientation])
    return _TURNED[orientation](image)


def _array(image: Image.Image) -> Pixels:
    """The pixels of an RGB or grey image [H, W, 3 or 1]; numpy's own way takes twice their memory meanwhile."""
    rows = max(SCRATCH_BYTES // (4 * image.width), 1)
    if rows >= image.height:
        return np.asarray(image).reshape(image.height, image.width, -1)
    pixels = np.empty((image.height, image.width, len(image.getbands())), np.uint8)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        pixels[top : top + rows] = np.asarray(strip).reshape(strip.height, strip.width, -1)
    return pixels


def _shape(image: Image.Image | Pixels, settings: ImageSettings) -> Pixels:
    """Resize, crop or pad, and colour to RGB: last, in open_clip's order, or first, in transformers'."""
    if isinstance(image, Image.Image) and settings.to_rgb != "last":
        image = _rgb(image, on_white=settings.to_rgb == "white")
    if isinstance(image, Image.Image) and image.mode in ("RGB", "L"):
        image = _array(image)
    size = image.size if isinstance(image, Image.Image) else (image.shape[1], image.shape[0])
    geometry = geometry_of(size, settings)
    resample = Image.Resampling.BICUBIC if geometry.always_bicubic else INTERPOLATIONS[settings.interpolation]
    if isinstance(image, Image.Image):
        return _pad_image(resize_image(image, geometry, resample, settings.max_pixels), geometry, settings)
    return _pad_pixels(resize_pixels(image, geometry, resample, settings.max_pixels), geometry, settings)


def geometry_of(size: tuple[int, int], settings: ImageSettings) -> Geometry:
    if settings.resize_mode == "naflex":
        return plan(size, patched_size(size, settings.patch_size, settings.max_num_patches), "squash")
    return plan(size, (settings.width, settings.height), settings.resize_mode, settings.crop_offset)


def _rgb(image: Image.Image, *, on_white: bool) -> Image.Image:
    """As `Image.convert`, which drops alpha, or as transformers' `convert_to_rgb`."""
    if on_white and ("A" in image.getbands() or image.info.get("transparency") is not None):
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image.info.pop("transparency", None)
    return image.convert("RGB")


def _pad_image(image: Image.Image, geometry: Geometry, settings: ImageSettings) -> Pixels:
    """Pad an image of any mode and convert it to RGB; alpha is dropped, as open_clip drops it.

    One level for all three channels is open_clip's own fill, which it applies in the image's mode (an index
    of the palette, an ink of CMYK); three different levels are a colour, applied in RGB.
    """
    image.info.pop("transparency", None)
    if len(set(settings.fill_color)) > 1:
        return _pad_pixels(np.asarray(image.convert("RGB")), geometry, settings)
    level, bands = settings.fill_color[0], len(image.getbands())
    border = (geometry.x.before, geometry.y.before, geometry.x.after, geometry.y.after)
    if any(border):
        image = ImageOps.expand(image, border, fill=level if bands == 1 else (level,) * bands)
    return np.asarray(image.convert("RGB"))


def _pad_pixels(pixels: Pixels, geometry: Geometry, settings: ImageSettings) -> Pixels:
    x, y = geometry.x, geometry.y
    if not any((x.before, x.after, y.before, y.after)):
        return pixels
    canvas = np.empty((settings.height, settings.width, 3), np.uint8)
    canvas[:] = settings.fill_color
    canvas[y.before : y.before + y.keep, x.before : x.before + x.keep] = pixels
    return canvas


def _damaged(image: Image.Image, error: Exception) -> ImageError:
    width, height = image.size
    return ImageError(
        f"a {image.format} of {width} x {height} that is cut off or damaged ({error}); whole files are allowed; "
        "send the file again"
    )
