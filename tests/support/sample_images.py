"""One encoded image of every kind that a caller may send, drawn from a fixed seed."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageDraw, features

SIZE = (401, 302)


def photo(size: tuple[int, int] = SIZE, seed: int = 0, grain: float = 6.0) -> Image.Image:
    """Smooth gradients, shapes with hard edges and mild grain, its standard deviation in levels."""
    width, height = size
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [90 * np.sin(x / 40 + y / 90), 80 * np.cos(y / 30), 70 * np.sin((x + y) / 55)]
    levels = 128 + np.stack(waves, -1) + rng.normal(0, grain, (height, width, 3))
    image = Image.fromarray(levels.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        left, top = rng.integers(0, width), rng.integers(0, height)
        box = (left, top, left + rng.integers(5, 90), top + rng.integers(5, 90))
        draw.ellipse([int(edge) for edge in box], fill=tuple(int(level) for level in rng.integers(0, 256, 3)))
    return image


def encode(image: Image.Image, file_format: str, **options: Any) -> bytes:
    """The bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def with_alpha(mode: str = "RGBA") -> Image.Image:
    """A photo whose alpha runs from clear to opaque."""
    image = photo().convert(mode)
    ramp = np.linspace(0, 255, SIZE[0]).astype(np.uint8)
    image.putalpha(Image.fromarray(np.tile(ramp, (SIZE[1], 1))))
    return image


def sixteen_bit() -> Image.Image:
    """Grey of 16 bits, all of the range in use."""
    levels = np.asarray(photo().convert("L")).astype(np.uint16)
    return Image.fromarray(levels * 257 - (levels > 100))


def turned(orientation: int, file_format: str = "JPEG") -> bytes:
    """A photo that its EXIF block says to turn."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return encode(photo((211, 320)), file_format, exif=exif.tobytes())


def animated() -> bytes:
    """A GIF of two frames; the first is the image."""
    first, second = photo().quantize(64), photo(seed=9).quantize(64)
    return encode(first, "GIF", save_all=True, append_images=[second])


def palette_with_alpha() -> bytes:
    """A palette whose entries have an alpha each."""
    image = photo().quantize(32)
    return encode(image, "PNG", transparency=bytes(range(0, 256, 8)))


IMAGES: dict[str, Callable[[], bytes]] = {
    "jpeg 4:2:0": lambda: encode(photo((1024, 768)), "JPEG", quality=90),
    "jpeg 4:4:4": lambda: encode(photo(), "JPEG", quality=95, subsampling=0),
    "jpeg upright": lambda: encode(photo((300, 477)), "JPEG"),
    "jpeg progressive": lambda: encode(photo(), "JPEG", progressive=True),
    "jpeg grey": lambda: encode(photo().convert("L"), "JPEG"),
    "jpeg cmyk": lambda: encode(photo().convert("CMYK"), "JPEG"),
    "jpeg stored as rgb": lambda: encode(photo(), "JPEG", keep_rgb=True),
    "png": lambda: encode(photo(), "PNG"),
    "png rgba": lambda: encode(with_alpha(), "PNG"),
    "png grey": lambda: encode(photo().convert("L"), "PNG"),
    "png grey and alpha": lambda: encode(with_alpha("LA"), "PNG"),
    "png palette": lambda: encode(photo().quantize(100), "PNG"),
    "png palette and alpha": palette_with_alpha,
    "png one clear colour": lambda: encode(photo(), "PNG", transparency=(128, 128, 128)),
    "png one bit": lambda: encode(photo().convert("1"), "PNG"),
    "png sixteen bits": lambda: encode(sixteen_bit(), "PNG"),
    "png turned": lambda: turned(6, "PNG"),
    "webp": lambda: encode(photo(), "WEBP", quality=85),
    "webp rgba": lambda: encode(with_alpha(), "WEBP", lossless=True),
    "webp turned": lambda: turned(8, "WEBP"),
    "gif": lambda: encode(photo().quantize(64), "GIF"),
    "gif animated": animated,
    "bmp": lambda: encode(photo(), "BMP"),
    "tiff": lambda: encode(photo(), "TIFF", compression="tiff_lzw"),
    "tiff sixteen bits": lambda: encode(sixteen_bit(), "TIFF"),
    "tiff cmyk": lambda: encode(photo().convert("CMYK"), "TIFF"),
    "tiff turned": lambda: turned(6, "TIFF"),
    "wide": lambda: encode(photo((2000, 3)), "PNG"),
    "tall": lambda: encode(photo((3, 2000)), "PNG"),
    "wide rgba": lambda: encode(photo((900, 7)).convert("RGBA"), "PNG"),
    "tall grey": lambda: encode(photo((5, 700)).convert("L"), "PNG"),
    "much taller than wide": lambda: encode(photo((260, 900)), "JPEG"),
    "as small as can be": lambda: encode(photo((1, 1)), "PNG"),
    "small": lambda: encode(photo((37, 21)), "JPEG"),
    "of the model's size": lambda: encode(photo((96, 96)), "JPEG"),
    "one row more": lambda: encode(photo((96, 97)), "JPEG"),
    **{f"exif {number}": lambda number=number: turned(number) for number in range(1, 9)},
}
if features.check("avif"):
    IMAGES["avif"] = lambda: encode(photo(), "AVIF")
