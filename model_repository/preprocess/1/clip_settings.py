"""The settings of preprocessing: the checkpoint's own transform, and what a caller may send."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from clip_geometry import CROP_OFFSETS
from PIL import Image

INTERPOLATIONS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
RESIZE_MODES = ("shortest", "longest", "squash", "naflex")
EXIF_MODES = ("transpose", "ignore")
TO_RGB = ("last", "first", "white")


@dataclass(frozen=True)
class PictureSettings:
    """What the checkpoint's own transform does, and what a caller may send.

    Attributes:
        height, width: of the pixels that come out.
        resize_mode: "shortest" side to size, then crop; "longest" side to size, then pad; "squash" both; or "naflex",
            both to whole patches.
        fill_color: RGB of the padding of "longest".
        max_pixels: the largest picture, width x height; also the largest picture resized before cropping.
        max_bytes: the longest encoded picture.
        exif: "transpose" turns a picture upright as its EXIF orientation says, "ignore" leaves it.
        crop_offset: how half of an odd number is rounded: "round" to even, or "floor".
        to_rgb: "last" resizes in the picture's own mode, "first" converts before, "white" also lays transparent
            pictures over white.
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

    @property
    def pixel_shape(self) -> tuple[int, ...]:
        """Of what comes out for one picture."""
        if self.resize_mode == "naflex":
            return 1 + self.max_num_patches, 3 * self.patch_size**2
        return self.height, self.width, 3

    def __post_init__(self) -> None:
        _require("resize_mode", self.resize_mode, RESIZE_MODES)
        _require("interpolation", self.interpolation, tuple(INTERPOLATIONS))
        _require("exif", self.exif, EXIF_MODES)
        _require("crop_offset", self.crop_offset, tuple(CROP_OFFSETS))
        _require("to_rgb", self.to_rgb, TO_RGB)


def settings_from(parameters: Mapping[str, str]) -> PictureSettings:
    """Read the parameters of config.pbtxt, all of them strings."""
    red, green, blue = (int(level) for level in parameters["fill_color"].split(","))
    return PictureSettings(
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
    )


def _require(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; {', '.join(allowed)} are allowed; set the parameter `{name}`")
