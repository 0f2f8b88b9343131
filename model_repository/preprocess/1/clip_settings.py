"""The settings of preprocessing: the checkpoint's own transform, and what a caller may send."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from clip_geometry import CROP_OFFSETS
from PIL import Image, features

Pixels = npt.NDArray[np.uint8]

INTERPOLATIONS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
RESIZE_MODES = ("shortest", "longest", "squash", "naflex")
EXIF_MODES = ("transpose", "ignore")
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF") + (("AVIF",) if features.check("avif") else ())
TO_RGB = ("last", "first", "white")
# Pixels of the longer side: what JPEG can have. Decoders take memory by the row.
MAX_SIDE = 65_500


class ImageError(ValueError):
    """An image that cannot be served: what was given; what is allowed; what to do."""


@dataclass(frozen=True)
class ImageSettings:
    """What the checkpoint's own transform does, and what a caller may send.

    Attributes:
        height, width: of the pixels that come out.
        resize_mode: "shortest" side to size, then crop; "longest" side to size, then pad; "squash" both; or "naflex",
            both to whole patches.
        fill_color: RGB of the padding of "longest".
        max_pixels: the largest image, width x height; also the largest image resized before cropping.
        max_bytes: the longest encoded image.
        cpu_seconds, megabytes: what a decoder process may spend on one image, memory beyond its own.
        exif: "transpose" turns an image upright as its EXIF orientation says, "ignore" leaves it.
        crop_offset: how half of an odd number is rounded: "round" to even, or "floor".
        to_rgb: "last" resizes in the image's own mode, "first" converts before, "white" also lays transparent
            images over white.
        patch_size, max_num_patches: of "naflex" alone, see `clip_patches`.
    """

    height: int
    width: int
    resize_mode: str
    interpolation: str
    fill_color: tuple[int, int, int]
    max_pixels: int
    max_bytes: int
    exif: str = "transpose"
    crop_offset: str = "round"
    to_rgb: str = "last"
    patch_size: int = 0
    max_num_patches: int = 0
    cpu_seconds: float = 2.0
    megabytes: int = 500

    @property
    def pixel_shape(self) -> tuple[int, ...]:
        """Of what comes out for one image."""
        if self.resize_mode == "naflex":
            return 1 + self.max_num_patches, 3 * self.patch_size**2
        return self.height, self.width, 3

    def __post_init__(self) -> None:
        _require("resize_mode", self.resize_mode, RESIZE_MODES)
        _require("interpolation", self.interpolation, tuple(INTERPOLATIONS))
        _require("exif", self.exif, EXIF_MODES)
        _require("crop_offset", self.crop_offset, tuple(CROP_OFFSETS))
        _require("to_rgb", self.to_rgb, TO_RGB)


def settings_from(parameters: Mapping[str, str]) -> ImageSettings:
    """Read the parameters of config.pbtxt, all of them strings."""
    red, green, blue = (int(level) for level in parameters["fill_color"].split(","))
    return ImageSettings(
        height=int(parameters["image_height"]),
        width=int(parameters["image_width"]),
        resize_mode=parameters["resize_mode"],
        interpolation=parameters["interpolation"],
        fill_color=(red, green, blue),
        max_pixels=int(parameters["max_pixels"]),
        max_bytes=int(parameters["max_bytes"]),
        exif=parameters.get("exif", "transpose"),
        crop_offset=parameters.get("crop_offset", "round"),
        to_rgb=parameters.get("to_rgb", "last"),
        patch_size=int(parameters.get("patch_size", 0)),
        max_num_patches=int(parameters.get("max_num_patches", 0)),
        cpu_seconds=float(parameters.get("image_seconds", 2.0)),
        megabytes=int(parameters.get("image_megabytes", 500)),
    )


def check_bytes(encoded: bytes, settings: ImageSettings) -> None:
    """Refuse an empty image, and one of too many bytes.

    Raises:
        ImageError: says so.
    """
    if not encoded:
        raise ImageError(f"an empty image; {allowed()}; send the bytes of an image file")
    if len(encoded) > settings.max_bytes:
        raise ImageError(
            f"an image of {len(encoded)} bytes; at most {settings.max_bytes} are allowed; "
            f"send a smaller image or {raise_option('--max-image-bytes')}"
        )


def check_size(image_format: str | None, size: tuple[int, int], settings: ImageSettings) -> None:
    """Refuse an image of too many pixels, (width, height), or with too long a side.

    Raises:
        ImageError: says so.
    """
    width, height = size
    if width * height > settings.max_pixels:
        raise ImageError(
            f"a {image_format} of {width} x {height} = {width * height} pixels; at most {settings.max_pixels} are "
            f"allowed; send a smaller image or {raise_option('--max-image-pixels')}"
        )
    if max(size) > MAX_SIDE:
        raise ImageError(
            f"a {image_format} of {width} x {height}; sides of at most {MAX_SIDE} pixels are allowed; send a smaller "
            "image"
        )


def too_much_memory(settings: ImageSettings) -> ImageError:
    """The refusal of an image whose decoder needs more memory than it may."""
    return ImageError(
        f"an image that needs more than {settings.megabytes} MB of memory to decode; at most {settings.megabytes} MB "
        f"are allowed; send a smaller image or {raise_option('--image-megabytes')}"
    )


def allowed() -> str:
    """The formats, for refusals."""
    return f"{', '.join(FORMATS)} are allowed"


def raise_option(option: str) -> str:
    """What whoever runs the server can do about a limit."""
    return f"raise {option} of `tritonclip configure`"


def _require(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; {', '.join(allowed)} are allowed; set the parameter `{name}`")
