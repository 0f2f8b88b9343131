"""Every kind of image, through the served preprocessing and through open_clip's own transform."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from sample_images import IMAGES, photo, turned
from tritonclip_export.frameworks import open_clip, torch

sys.path.append(str(Path(__file__).parents[2] / "model_repository" / "preprocess" / "1"))

from clip_preprocess import ImageSettings, preprocess

torch.set_num_threads(1)


def settings(**changes):
    """The settings of a model of 96 x 96, bicubic and cropped, with `changes`."""
    defaults = {
        "height": 96,
        "width": 96,
        "resize_mode": "shortest",
        "interpolation": "bicubic",
        "fill_color": (0, 0, 0),
        "max_pixels": 89_478_485,
        "max_bytes": 1 << 25,
    }
    return ImageSettings(**defaults | changes)


def reference(encoded: bytes, chosen: ImageSettings) -> np.ndarray:
    """What open_clip makes of the image, uint8 levels before normalization."""
    square = chosen.height == chosen.width
    transform = open_clip.transform.image_transform(
        chosen.height if square else (chosen.height, chosen.width),
        is_train=False,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        resize_mode=chosen.resize_mode,
        interpolation=chosen.interpolation,
        fill_color=chosen.fill_color[0],
    )
    image = Image.open(io.BytesIO(encoded))
    image = ImageOps.exif_transpose(image) if chosen.exif == "transpose" else image
    return np.rint(transform(image).numpy().transpose(1, 2, 0) * 255)


def worst(encoded: bytes, chosen: ImageSettings) -> float:
    """The largest difference of one value, in levels of 255."""
    ours = preprocess(encoded, chosen)
    assert ours.dtype == np.uint8
    assert ours.shape == (chosen.height, chosen.width, 3)
    return float(np.abs(ours - reference(encoded, chosen)).max())


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("kind", IMAGES)
# A palette with alpha makes Pillow warn in open_clip's convert("RGB").
@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")
def test_equals_the_checkpoints_own_transform(kind, resize_mode, interpolation):
    if resize_mode == "longest" and kind in ("wide", "tall"):
        with pytest.raises(ValueError, match="must be > 0"):
            reference(IMAGES[kind](), settings(resize_mode="longest"))
        return
    chosen = settings(resize_mode=resize_mode, interpolation=interpolation)
    assert worst(IMAGES[kind](), chosen) <= 1


@pytest.mark.parametrize("kind", ["jpeg 4:2:0", "jpeg upright", "png rgba", "exif 6", "webp", "much taller than wide"])
@pytest.mark.parametrize("size", [(224, 224), (336, 336), (256, 128), (120, 200)])
@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
def test_other_sizes_and_targets_that_are_not_square(kind, size, resize_mode):
    chosen = settings(height=size[0], width=size[1], resize_mode=resize_mode, interpolation="bilinear")
    assert worst(IMAGES[kind](), chosen) <= 1


@pytest.mark.parametrize(
    "kind", ["jpeg 4:2:0", "jpeg grey", "jpeg cmyk", "png rgba", "png grey", "png one bit", "png palette"]
)
def test_padding_is_filled_as_open_clip_fills_it(kind):
    assert worst(IMAGES[kind](), settings(resize_mode="longest", fill_color=(127, 127, 127))) <= 1


def test_padding_of_one_colour_is_that_colour():
    chosen = settings(resize_mode="longest", fill_color=(255, 10, 60))
    pixels = preprocess(IMAGES["png grey"](), chosen)
    assert pixels[0, 0].tolist() == [255, 10, 60]
    inside = settings(resize_mode="longest")
    assert np.array_equal(pixels[20:70], preprocess(IMAGES["png grey"](), inside)[20:70])


@pytest.mark.parametrize("resize_mode", ["longest", "shortest", "squash"])
def test_a_side_that_would_vanish_keeps_one_pixel(resize_mode):
    wide = preprocess(IMAGES["wide"](), settings(resize_mode=resize_mode, fill_color=(9, 9, 9)))
    assert wide.shape == (96, 96, 3)
    if resize_mode == "longest":
        assert [int(row) for row in np.flatnonzero((wide != 9).any(axis=(1, 2)))] == [47]


def test_exif_can_be_ignored():
    encoded = turned(6)
    assert worst(encoded, settings(exif="ignore")) <= 1
    assert worst(encoded, settings()) <= 1
    assert not np.array_equal(preprocess(encoded, settings()), preprocess(encoded, settings(exif="ignore")))


def test_alpha_is_dropped_not_composited():
    clear = Image.new("RGBA", (100, 100), (200, 30, 90, 0))
    buffer = io.BytesIO()
    clear.save(buffer, "PNG")
    assert worst(buffer.getvalue(), settings(height=100, width=100)) == 0
    assert preprocess(buffer.getvalue(), settings(height=100, width=100))[50, 50].tolist() == [200, 30, 90]


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "RGBA"])
@pytest.mark.parametrize("size", [(3, 900), (900, 3), (2, 1500)])
def test_a_resize_beyond_the_pixel_limit_computes_the_crop_alone(mode, size):
    image = photo(size).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "TIFF")
    limited = settings(max_pixels=100_000)
    assert worst(buffer.getvalue(), limited) <= 1
