"""Which images the model preprocess_dali decodes, and the two resizes that it is asked for.

The sizes come from `clip_geometry`, so that a GPU and a CPU keep the same pixels. DALI decodes an image as it is
stored; what EXIF says is done to the few pixels that come back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from clip_geometry import Axis, Geometry
from clip_preprocess import ImageError, ImageSettings, Pixels, geometry_of, open_image, orientation_of, turn
from clip_resize import vertical_first
from PIL import Image

Steps = npt.NDArray[np.float32]
# A request's number in its batch, and an image's in its request.
Place = tuple[int, int]

# Of one image, in the memory of the GPU and in the batch, which is as long as its longest file.
MAX_PIXELS, MAX_BYTES = 1 << 24, 1 << 23
# Of the files of one call.
MAX_CALL_BYTES = 1 << 25

_END_OF_JPEG = b"\xff\xd9"
# Components that are RGB and not YCbCr say so by these names, or by 0 in Adobe's segment.
_RGB_NAMES = [ord(name) for name in "RGB"]
# What the EXIF orientations do to the stored image's axes.
_REVERSED_X, _REVERSED_Y, _SWAPPED = {2, 3, 6, 7}, {3, 4, 7, 8}, {5, 6, 7, 8}


@dataclass(frozen=True)
class Job:
    """An image for DALI.

    Attributes:
        encoded: the file.
        steps: float32 [14]: of each of two resizes the size and the region, (height, width) and (top, left, bottom,
            right), the second in pixels of the first; then the (top, left) at which the result is cut out.
        orientation: what is still to be done to the pixels that come back.
    """

    encoded: bytes
    steps: Steps
    orientation: int | None


def job_for(encoded: bytes, settings: ImageSettings) -> Job | None:
    """None where the CPU is to decode the image, or to say what is wrong with it."""
    try:
        with open_image(encoded, settings) as image:
            if not _is_plain_jpeg(image, encoded):
                return None
            orientation = orientation_of(image) if settings.exif == "transpose" else None
            swapped = orientation in _SWAPPED
            if swapped and settings.height != settings.width:
                # All images come back in one shape.
                return None
            upright = image.size[::-1] if swapped else image.size
    except ImageError:
        return None
    return Job(encoded, _steps(geometry_of(upright, settings), orientation), orientation)


def parts(jobs: Mapping[Place, Job]) -> list[list[Place]]:
    """The keys of `jobs`, the shortest file first, in calls that take at most MAX_CALL_BYTES, or one file.

    A call's files are all as long as its longest, and the memory that it takes is never given back.
    """
    calls: list[list[Place]] = []
    for place in sorted(jobs, key=lambda place: len(jobs[place].encoded)):
        if calls and len(jobs[place].encoded) * (len(calls[-1]) + 1) <= MAX_CALL_BYTES:
            calls[-1].append(place)
        else:
            calls.append([place])
    return calls


def pack(jobs: Sequence[Job]) -> tuple[Pixels, Steps]:
    """The files, uint8 [B, bytes of the longest], filled up with 0, and the steps, float32 [B, 14]."""
    files = np.zeros((len(jobs), max(len(job.encoded) for job in jobs)), np.uint8)
    for row, job in zip(files, jobs, strict=True):
        row[: len(job.encoded)] = np.frombuffer(job.encoded, np.uint8)
    return files, np.stack([job.steps for job in jobs])


def upright(pixels: Pixels, job: Job) -> Pixels:
    """Turn what came back, uint8 [H, W, 3], as the image's EXIF block says."""
    turned = turn(pixels, job.orientation, "transpose")
    return np.asarray(turned)


def _is_plain_jpeg(image: Image.Image, encoded: bytes) -> bool:
    """Whether every decoder makes the same of it: whole, 8 bits, grey or YCbCr."""
    return (
        image.format in ("JPEG", "MPO")
        and image.mode in ("RGB", "L")
        and image.width * image.height <= MAX_PIXELS
        and len(encoded) <= MAX_BYTES
        and encoded.endswith(_END_OF_JPEG)
        and image.info.get("adobe_transform") != 0
        and [layer[0] for layer in getattr(image, "layer", [])] != _RGB_NAMES
    )


def _steps(geometry: Geometry, orientation: int | None) -> Steps:
    """Rows before columns or after, as Pillow does it to the upright image, with 8 bits in between."""
    rows_first = vertical_first(geometry) != (orientation in _SWAPPED)
    stored = _stored(geometry, orientation)
    sides = {"y": (stored.y.source, 0.0, stored.y.source), "x": (stored.x.source, 0.0, stored.x.source)}
    steps: list[float] = []
    for name in ("y", "x") if rows_first else ("x", "y"):
        axis: Axis = getattr(stored, name)
        begin, length = axis.box(0)
        sides[name] = (axis.keep, begin, begin + length)
        (height, top, bottom), (width, left, right) = sides["y"], sides["x"]
        steps += [height, width, top, left, bottom, right]
        sides[name] = (axis.keep, 0.0, axis.keep)
    return np.array([*steps, -stored.y.before, -stored.x.before], np.float32)


def _stored(geometry: Geometry, orientation: int | None) -> Geometry:
    """The geometry of the upright image, for the image as it lies in the file."""
    x = _reversed(geometry.x) if orientation in _REVERSED_X else geometry.x
    y = _reversed(geometry.y) if orientation in _REVERSED_Y else geometry.y
    return replace(geometry, x=y, y=x) if orientation in _SWAPPED else replace(geometry, x=x, y=y)


def _reversed(axis: Axis) -> Axis:
    return replace(axis, start=axis.full - axis.start - axis.keep, before=axis.after, after=axis.before)
