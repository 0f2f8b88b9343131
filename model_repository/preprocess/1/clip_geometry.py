"""Where every kept pixel comes from: sizes and offsets as torchvision and open_clip compute them, in integers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

# Python rounds half to even, as torchvision does; transformers rounds down.
CROP_OFFSETS: dict[str, Callable[[float], int]] = {"round": round, "floor": math.floor}


@dataclass(frozen=True)
class Axis:
    """One axis of a resize with its crop or padding.

    Attributes:
        source: pixels of the decoded image.
        full: pixels after the resize, before the crop.
        start, keep: the stretch of `full` that stays.
        before, after: padding, in pixels.
    """

    source: int
    full: int
    start: int
    keep: int
    before: int
    after: int

    @property
    def scale(self) -> float:
        """Source pixels per resized pixel; above 1 the image shrinks."""
        return self.source / self.full

    def needed(self, radius: float) -> tuple[int, int]:
        """The source pixels [first, last) that a filter of `radius` resized pixels reaches from the kept stretch."""
        reach = radius * max(self.scale, 1.0) + 1.0
        first = math.floor(self.start * self.scale - reach)
        last = math.ceil((self.start + self.keep) * self.scale + reach)
        return max(first, 0), min(last, self.source)

    def box(self, first: int) -> tuple[float, float]:
        """Begin and length of the kept stretch, in source pixels counted from `first`."""
        begin = max(self.start * self.scale - first, 0.0)
        return begin, min(self.keep * self.scale, self.source - first - begin)


@dataclass(frozen=True)
class Geometry:
    """Both axes, and whether open_clip insists on bicubic."""

    x: Axis
    y: Axis
    always_bicubic: bool


def plan(size: tuple[int, int], target: tuple[int, int], resize_mode: str, crop_offset: str = "round") -> Geometry:
    """Geometry for an image of `size` that becomes `target`, both (width, height)."""
    full = _FULL_SIZE[resize_mode](size, target)
    # open_clip resizes to a target that is not square with its default filter, whatever the configuration says.
    always_bicubic = resize_mode == "shortest" and target[0] != target[1]
    x, y = (_axis(*lengths, crop_offset) for lengths in zip(size, full, target, strict=True))
    return Geometry(x, y, always_bicubic)


def _axis(source: int, full: int, target: int, crop_offset: str) -> Axis:
    """Crop or pad in the middle; an odd pixel is padded behind."""
    missing = target - full
    if missing > 0:
        return Axis(source, full, 0, full, missing // 2, missing - missing // 2)
    return Axis(source, full, CROP_OFFSETS[crop_offset](-missing / 2.0), target, 0, 0)


def _shortest(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    width, height = size
    if target[0] != target[1]:
        return _keep_ratio(size, min(width / target[0], height / target[1]))
    side = target[0]
    # torchvision rounds the long side down.
    return (side, int(side * height / width)) if width <= height else (int(side * width / height), side)


def _longest(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    return _keep_ratio(size, max(size[0] / target[0], size[1] / target[1]))


def _keep_ratio(size: tuple[int, int], ratio: float) -> tuple[int, int]:
    # open_clip cannot resize a side to nothing and raises; one row of pixels is kept here.
    return max(round(size[0] / ratio), 1), max(round(size[1] / ratio), 1)


def _squash(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    return target


_FULL_SIZE = {"shortest": _shortest, "longest": _longest, "squash": _squash}
