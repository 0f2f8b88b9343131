"""Resizes like Pillow: by Pillow, or by SIMD convolutions where those stay within one level of it.

Both round to 8 bits between the two passes, so the order of the passes shows: bicubic overshoots at edges and
is clipped in between. Each resize here takes the order that the installed Pillow takes.
"""

from __future__ import annotations

import threading

import cykooz_resizer as simd
import numpy as np
import numpy.typing as npt
import PIL
from clip_geometry import Axis, Geometry
from PIL import Image

Pixels = npt.NDArray[np.uint8]
Resampling = Image.Resampling

_PILLOW = tuple(int(part) for part in PIL.__version__.split(".")[:2])
_RADIUS = {Resampling.BICUBIC: 2.0, Resampling.BILINEAR: 1.0}
_FILTERS = {
    Resampling.BICUBIC: simd.ResizeAlg.convolution(simd.FilterType.catmull_rom),
    Resampling.BILINEAR: simd.ResizeAlg.convolution(simd.FilterType.bilinear),
}
_PIXEL_TYPES = {1: simd.PixelType.U8, 3: simd.PixelType.U8x3}
# Below this scale the second pass can carry a rounding difference of the first on undiminished and add its own.
_FAST_FROM_SCALE = {Resampling.BICUBIC: 2.0, Resampling.BILINEAR: 1.0}
# What a pass copies at a time; an image of up to 11 megapixels in one piece.
_STRIP_BYTES = 1 << 25
_PREMULTIPLIED = {"LA": "La", "RGBA": "RGBa"}
_threads = threading.local()


def resize_pixels(pixels: Pixels, geometry: Geometry, resample: Resampling, max_pixels: int) -> Pixels:
    """The kept window of resized `pixels`, uint8 [H, W, 3 or 1] in and out, at most one level from Pillow's."""
    second = geometry.x if vertical_first(geometry) else geometry.y
    if second.scale >= _FAST_FROM_SCALE[resample]:
        return _convolve(pixels, geometry, resample)
    image = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
    return np.asarray(resize_image(image, geometry, resample, max_pixels)).reshape(
        geometry.y.keep, geometry.x.keep, pixels.shape[2]
    )


def resize_image(image: Image.Image, geometry: Geometry, resample: Resampling, max_pixels: int) -> Image.Image:
    """The kept window of the resized image, by Pillow, in the image's own mode.

    A resize that would make more than `max_pixels` before its crop computes the kept window alone.
    """
    x, y = geometry.x, geometry.y
    if x.full * y.full > max_pixels:
        return _resize_window(image, geometry, resample)
    return image.resize((x.full, y.full), resample).crop((x.start, y.start, x.start + x.keep, y.start + y.keep))


def vertical_first(geometry: Geometry) -> bool:
    """Whether the installed Pillow resizes columns before rows."""
    x, y = geometry.x, geometry.y
    if _PILLOW >= (13, 0):
        return y.source - y.full > max(0, 2 * (x.source - x.full))
    if _PILLOW >= (12, 2):
        return y.source > 100 * x.source and y.full < y.source
    return False


def _passes(geometry: Geometry) -> tuple[bool, bool]:
    """The two passes in their order; True is the horizontal one."""
    return (False, True) if vertical_first(geometry) else (True, False)


def _convolve(pixels: Pixels, geometry: Geometry, resample: Resampling) -> Pixels:
    top, bottom = geometry.y.needed(_RADIUS[resample])
    # Rows alone are cut: numpy copies a stretch of whole rows as one block, and anything else pixel by pixel.
    window = pixels[top:bottom]
    for horizontal in _passes(geometry):
        axis, cut = (geometry.x, 0) if horizontal else (geometry.y, top)
        if axis.source == axis.full and axis.keep == window.shape[1 if horizontal else 0]:
            continue
        window = _convolve_axis(window, axis, axis.box(cut), resample, horizontal)
    return window


def _convolve_axis(
    pixels: Pixels, axis: Axis, box: tuple[float, float], resample: Resampling, horizontal: bool
) -> Pixels:
    """One pass, in strips along the other axis, each of which needs a copy of its pixels."""
    across = pixels.shape[0 if horizontal else 1]
    strip = max(_STRIP_BYTES * across // pixels.nbytes, 1)
    strips = [slice(first, min(first + strip, across)) for first in range(0, across, strip)]
    made = [
        _convolve_strip(pixels[one] if horizontal else pixels[:, one], axis.keep, box, resample, horizontal)
        for one in strips
    ]
    return made[0] if len(made) == 1 else np.concatenate(made, axis=0 if horizontal else 1)


def _convolve_strip(
    pixels: Pixels, keep: int, box: tuple[float, float], resample: Resampling, horizontal: bool
) -> Pixels:
    height, width, channels = pixels.shape
    kind, (begin, length) = _PIXEL_TYPES[channels], box
    size = (keep, height) if horizontal else (width, keep)
    crop = (begin, 0, length, height) if horizontal else (0, begin, width, length)
    resized = simd.ImageData(*size, kind)
    options = simd.ResizeOptions(_FILTERS[resample], use_alpha=False, crop_box=simd.CropBox(*crop))
    _resizer().resize(simd.ImageData(width, height, kind, np.ascontiguousarray(pixels).tobytes()), resized, options)
    return np.frombuffer(resized.get_buffer(), np.uint8).reshape(size[1], size[0], channels)


def _resizer() -> simd.Resizer:
    """This thread's; two threads that share one wait for each other."""
    if not hasattr(_threads, "resizer"):
        _threads.resizer = simd.Resizer()
    made: simd.Resizer = _threads.resizer
    return made


def _resize_window(image: Image.Image, geometry: Geometry, resample: Resampling) -> Image.Image:
    window = image.convert(_PREMULTIPLIED.get(image.mode, image.mode))
    for horizontal in _passes(geometry):
        window = _resize_axis(window, geometry.x if horizontal else geometry.y, resample, horizontal)
    return window.convert(image.mode) if window.mode != image.mode else window


def _resize_axis(image: Image.Image, axis: Axis, resample: Resampling, horizontal: bool) -> Image.Image:
    first, last = axis.needed(_RADIUS[resample])
    begin, length = axis.box(first)
    if horizontal:
        part = image.crop((first, 0, last, image.height))
        return part.resize((axis.keep, part.height), resample, box=(begin, 0, begin + length, part.height))
    part = image.crop((0, first, image.width, last))
    return part.resize((part.width, axis.keep), resample, box=(0, begin, part.width, begin + length))
