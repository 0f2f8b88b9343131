"""The fast resize against Pillow's, over sizes, scales, crops and textures that make rounding hardest."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from sample_images import encode, photo

sys.path.append(str(Path(__file__).parents[2] / "model_repository" / "preprocess" / "1"))

import clip_preprocess
import clip_resize
from clip_geometry import Axis, Geometry, plan

BICUBIC, BILINEAR = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR


def texture(kind: str, size: tuple[int, int], seed: int, channels: int) -> np.ndarray:
    """Pixels that overshoot, tie or stay flat, uint8 [H, W, C]."""
    rng = np.random.default_rng(seed)
    shape = (size[1], size[0], channels)
    if kind == "noise":
        return rng.integers(0, 256, shape, dtype=np.uint8)
    if kind == "checks":
        pixels = np.zeros(shape, np.uint8)
        pixels[:: int(rng.integers(1, 5))] = 255
        pixels[:, :: int(rng.integers(1, 5))] ^= 255
        return pixels
    if kind == "flat":
        return np.full(shape, rng.integers(0, 256), np.uint8)
    return (rng.integers(0, 2, shape) * 255).astype(np.uint8)


def axis(source: int, full: int, start: float, keep: float) -> Axis:
    """An axis that keeps a stretch given in shares of the whole."""
    first = int(start * (full - 1))
    return Axis(source, full, first, 1 + int(keep * (full - 1 - first)), 0, 0)


share = st.floats(0, 1)
side = st.integers(1, 420)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(
    source=st.tuples(side, side),
    full=st.tuples(side, side),
    window=st.tuples(share, share, share, share),
    kind=st.sampled_from(["noise", "checks", "flat", "hard"]),
    resample=st.sampled_from([BICUBIC, BILINEAR]),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 1 << 20),
)
@example((305, 651), (224, 257), (0.0, 0.0, 1.0, 1.0), "hard", BICUBIC, 3, 0)
@example((302, 107), (54, 52), (0.0, 0.0, 1.0, 1.0), "checks", BICUBIC, 3, 0)
@example((31, 396), (375, 147), (0.0, 0.0, 1.0, 1.0), "hard", BICUBIC, 1, 0)
def test_within_one_level_of_pillow(source, full, window, kind, resample, channels, seed):
    geometry = Geometry(axis(source[0], full[0], *window[:2]), axis(source[1], full[1], *window[2:]), False)
    pixels = texture(kind, source, seed, channels)
    ours = clip_resize.resize_pixels(pixels, geometry, resample, 1 << 30)
    theirs = _pillow(pixels, full, resample)
    x, y = geometry.x, geometry.y
    kept = theirs[y.start : y.start + y.keep, x.start : x.start + x.keep]
    assert np.abs(ours.astype(int) - kept).max() <= 1


def _pillow(pixels: np.ndarray, full: tuple[int, int], resample: Image.Resampling) -> np.ndarray:
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    return np.asarray(image.resize(full, resample)).reshape(full[1], full[0], -1)


@pytest.mark.parametrize("resample", [BICUBIC, BILINEAR])
@pytest.mark.parametrize("size", [(1024, 768), (768, 1024), (640, 480), (1920, 500), (600, 1900), (449, 2400)])
@pytest.mark.parametrize("kind", ["noise", "checks", "hard"])
def test_ordinary_images_take_the_fast_way_within_one_level(kind, size, resample, monkeypatch):
    monkeypatch.setattr(clip_resize, "resize_image", None)
    geometry = plan(size, (224, 224), "shortest")
    pixels = texture(kind, size, 3, 3)
    ours = clip_resize.resize_pixels(pixels, geometry, resample, 1 << 30)
    x, y = geometry.x, geometry.y
    kept = _pillow(pixels, (x.full, y.full), resample)[y.start : y.start + 224, x.start : x.start + 224]
    assert np.abs(ours.astype(int) - kept).max() <= 1


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    source=st.tuples(st.integers(2, 200), st.integers(2, 200)), full=st.tuples(st.integers(2, 200), st.integers(2, 200))
)
def test_the_order_of_the_passes_is_the_installed_pillows(source, full):
    image = Image.fromarray(texture("hard", source, 5, 3))
    geometry = Geometry(axis(source[0], full[0], 0, 1), axis(source[1], full[1], 0, 1), False)
    between = (source[0], full[1]) if clip_resize.vertical_first(geometry) else (full[0], source[1])
    stepwise = image.resize(between, BICUBIC).resize(full, BICUBIC)
    assert np.array_equal(np.asarray(stepwise), np.asarray(image.resize(full, BICUBIC)))


@pytest.mark.parametrize(
    ("size", "target", "mode", "full", "start"),
    [
        ((1024, 768), (224, 224), "shortest", (298, 224), (37, 0)),
        ((768, 1024), (224, 224), "shortest", (224, 298), (0, 37)),
        ((1000, 997), (224, 224), "shortest", (224, 224), (0, 0)),
        ((500, 375), (336, 336), "shortest", (448, 336), (56, 0)),
        ((300, 301), (100, 100), "squash", (100, 100), (0, 0)),
        ((303, 200), (200, 200), "shortest", (303, 200), (52, 0)),
        ((301, 200), (200, 200), "shortest", (301, 200), (50, 0)),
    ],
)
def test_sizes_and_offsets_are_torchvisions(size, target, mode, full, start):
    geometry = plan(size, target, mode)
    assert (geometry.x.full, geometry.y.full) == full
    assert (geometry.x.start, geometry.y.start) == start


@pytest.mark.parametrize("orientation", range(2, 9))
def test_turning_is_what_pillow_does(orientation: int) -> None:
    pixels: np.ndarray = np.asarray(photo((53, 37)))
    expected = np.asarray(photo((53, 37)).transpose(clip_preprocess._UPRIGHT[orientation]))
    assert np.array_equal(clip_preprocess.turn(pixels, orientation, "transpose"), expected)


@pytest.mark.parametrize("size", [(1003, 701), (300, 3001), (3001, 300)])
@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_strips_change_nothing(size: tuple[int, int], image_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    encoded = encode(photo(size), image_format, exif=exif.tobytes())
    square = clip_preprocess.ImageSettings(64, 64, "shortest", "bicubic", (0, 0, 0), 1 << 26, 1 << 25)
    whole = clip_preprocess.preprocess(encoded, square)
    monkeypatch.setattr(clip_resize, "_STRIP_BYTES", 50_000)
    monkeypatch.setattr(clip_preprocess, "SCRATCH_BYTES", 50_000)
    assert np.array_equal(clip_preprocess.preprocess(encoded, square), whole)
