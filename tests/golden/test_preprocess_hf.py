"""Every kind of image, through the served preprocessing and through transformers' own processors."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from sample_images import IMAGES, encode, photo
from tritonclip_export.checkpoints.hugging_face.processors import hf_preprocess
from tritonclip_export.errors import CheckpointError
from tritonclip_export.frameworks import torch
from tritonclip_export.spec_builder import OPTIONAL_STEPS

from transformers import (  # isort: skip - after torch
    CLIPImageProcessor,
    CLIPImageProcessorPil,
    Siglip2ImageProcessor,
    Siglip2ImageProcessorPil,
    SiglipImageProcessorPil,
)
from transformers.models.siglip2.image_processing_siglip2 import (  # isort: skip
    get_image_size_for_max_num_patches,
)

sys.path.append(str(Path(__file__).parents[2] / "model_repository" / "preprocess" / "1"))

from clip_patches import patched_size, to_rows
from clip_preprocess import ImageSettings, preprocess

torch.set_num_threads(1)
SIDE = 96
BOX = {"height": SIDE, "width": SIDE}
CROP = {"size": {"shortest_edge": SIDE}, "crop_size": BOX, "do_center_crop": True}
KINDS: dict[str, Any] = {
    "crop": CLIPImageProcessorPil(**CROP),
    "crop, torchvision": CLIPImageProcessor(**CROP),
    "squash": SiglipImageProcessorPil(size=BOX, resample=2),
    "squash, no conversion": SiglipImageProcessorPil(size=BOX, do_convert_rgb=None),
}


def served(processor: Any, folder: Path) -> ImageSettings:
    """What the exporter makes of the processor's file."""
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(processor.to_dict()))
    read = hf_preprocess(path, {"image_size": SIDE})
    same = {key: read[key] for key in ("resize_mode", "interpolation", *OPTIONAL_STEPS) if key in read}
    return ImageSettings(SIDE, SIDE, fill_color=(0, 0, 0), max_pixels=1 << 30, max_bytes=1 << 25, **same)


def worst(encoded: bytes, processor: Any, settings: ImageSettings) -> float:
    """The largest difference of one value, in levels of 255."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded)))
    # A processor that does not convert takes RGB alone.
    image = image if processor.do_convert_rgb else image.convert("RGB")
    values = processor(image, return_tensors="pt").pixel_values[0].permute(1, 2, 0)
    levels = (values * torch.tensor(processor.image_std) + torch.tensor(processor.image_mean)) * 255
    return float(np.abs(preprocess(encoded, settings) - levels.round().numpy()).max())


@pytest.mark.parametrize("kind", ["crop", "squash", "squash, no conversion"])
@pytest.mark.parametrize("image", IMAGES)
# A palette with alpha makes Pillow warn where transformers converts it.
@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")
def test_equals_the_processor(image: str, kind: str, tmp_path: Path) -> None:
    assert worst(IMAGES[image](), KINDS[kind], served(KINDS[kind], tmp_path)) <= 1


@pytest.mark.parametrize("extra", range(1, 13))
@pytest.mark.parametrize("kind", ["crop", "crop, torchvision"])
@pytest.mark.parametrize("upright", [False, True])
def test_every_remainder_of_a_crop(extra: int, kind: str, upright: bool, tmp_path: Path) -> None:
    """No resize, so that the crop alone shows; open_clip begins one pixel later for 3, 7 and 11."""
    size = (SIDE, SIDE + extra) if upright else (SIDE + extra, SIDE)
    settings = served(KINDS[kind], tmp_path)
    assert settings.crop_offset == "floor"
    assert worst(encode(photo(size, grain=40.0), "PNG"), KINDS[kind], settings) == 0


@pytest.mark.parametrize("width", [1024, 1031, 1042, 1053])
def test_a_crop_after_a_resize(width: int, tmp_path: Path) -> None:
    kind = KINDS["crop"]
    assert worst(encode(photo((width, 768), grain=40.0), "PNG"), kind, served(kind, tmp_path)) <= 1


PATCH, MOST = 8, 40
NAFLEX = Siglip2ImageProcessorPil(patch_size=PATCH, max_num_patches=MOST)


def naflex(folder: Path, **changes: Any) -> ImageSettings:
    """What the exporter makes of Siglip2ImageProcessor's file."""
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**NAFLEX.to_dict(), **changes}))
    read = hf_preprocess(path, {"image_size": 48, "patch_size": PATCH, "num_patches": 36})
    same = {key: read[key] for key in ("resize_mode", "interpolation", *OPTIONAL_STEPS)}
    return ImageSettings(48, 48, fill_color=(0, 0, 0), max_pixels=1 << 30, max_bytes=1 << 25, **same)


def worst_patch(encoded: bytes, processor: Any, settings: ImageSettings) -> float:
    """As `worst`; the grids must be equal and the padding nothing."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))).convert("RGB")
    made = processor(image, return_tensors="pt")
    rows, columns = made.spatial_shapes[0].tolist()
    served_rows = preprocess(encoded, settings)
    assert served_rows.shape == (1 + MOST, 3 * PATCH**2)
    assert served_rows[0, :4].tolist() == [rows % 256, rows // 256, columns % 256, columns // 256]
    assert not served_rows[1 + rows * columns :].any()
    assert int(made.pixel_attention_mask.sum()) == rows * columns
    levels = (made.pixel_values[0] * 0.5 + 0.5) * 255
    return float(np.abs(served_rows[1:] - levels.round().numpy())[: rows * columns].max())


@pytest.mark.parametrize("image", IMAGES)
# A palette with alpha makes Pillow warn where it is converted.
@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")
def test_naflex_equals_the_processor(image: str, tmp_path: Path) -> None:
    assert worst_patch(IMAGES[image](), NAFLEX, naflex(tmp_path)) <= 1


@pytest.mark.parametrize(
    "size", [(640, 480), (333, 500), (900, 20), (3, 700), (1, 1), (40, 64), (127, 129), (700, 701)]
)
def test_naflex_at_every_aspect_ratio(size: tuple[int, int], tmp_path: Path) -> None:
    encoded = encode(photo(size, grain=40.0), "PNG")
    assert worst_patch(encoded, NAFLEX, naflex(tmp_path)) <= 1
    assert worst_patch(encoded, Siglip2ImageProcessor(patch_size=PATCH, max_num_patches=MOST), naflex(tmp_path)) <= 1


@pytest.mark.parametrize(("patch_size", "most"), [(16, 256), (14, 729), (16, 1024), (8, 40), (16, 7)])
def test_naflex_sizes_are_the_processors(patch_size: int, most: int) -> None:
    rng = np.random.default_rng(patch_size)
    for width, height in (rng.uniform(0, 4, (300, 2)) ** 6).astype(int) + 1:
        theirs = get_image_size_for_max_num_patches(int(height), int(width), patch_size, most)
        assert patched_size((int(width), int(height)), patch_size, most) == theirs[::-1]


def test_a_grid_longer_than_a_byte_has_two() -> None:
    rows = to_rows(np.ones((2, 600, 3), np.uint8), 2, 400)
    assert rows[0, :5].tolist() == [1, 0, 300 - 256, 1, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 16}, r"has patch_size 16 and max_num_patches 40; this NaFlex tower takes patches of 8"),
        ({"max_num_patches": None}, r"max_num_patches None; .* 1 to 4096 are served; save the model's Siglip2ImageP"),
        ({"max_num_patches": 5000}, r"max_num_patches 5000; .* 1 to 4096 are served"),
    ],
)
def test_a_naflex_processor_that_does_not_fit_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        naflex(tmp_path, **changes)
