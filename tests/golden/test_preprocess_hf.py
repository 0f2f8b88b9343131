"""Every kind of picture, through the served preprocessing and through transformers' own processors."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from sample_pictures import PICTURES, encode, photo
from tritonclip_export.frameworks import torch
from tritonclip_export.processors import hf_preprocess
from tritonclip_export.spec_builder import OPTIONAL_STEPS

from transformers import CLIPImageProcessor, CLIPImageProcessorPil, SiglipImageProcessorPil  # isort: skip - after torch

sys.path.append(str(Path(__file__).parents[2] / "model_repository" / "preprocess" / "1"))

from clip_preprocess import PictureSettings, preprocess

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


def served(processor: Any, folder: Path) -> PictureSettings:
    """What the exporter makes of the processor's file."""
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(processor.to_dict()))
    read = hf_preprocess(path, SIDE)
    same = {key: read[key] for key in ("resize_mode", "interpolation", *OPTIONAL_STEPS)}
    return PictureSettings(SIDE, SIDE, fill_color=(0, 0, 0), max_pixels=1 << 30, max_bytes=1 << 25, **same)


def worst(encoded: bytes, processor: Any, settings: PictureSettings) -> float:
    """The largest difference of one value, in levels of 255."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded)))
    # A processor that does not convert takes RGB alone.
    image = image if processor.do_convert_rgb else image.convert("RGB")
    values = processor(image, return_tensors="pt").pixel_values[0].permute(1, 2, 0)
    levels = (values * torch.tensor(processor.image_std) + torch.tensor(processor.image_mean)) * 255
    return float(np.abs(preprocess(encoded, settings) - levels.round().numpy()).max())


@pytest.mark.parametrize("kind", ["crop", "squash", "squash, no conversion"])
@pytest.mark.parametrize("picture", PICTURES)
# A palette with alpha makes Pillow warn where transformers converts it.
@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")
def test_equals_the_processor(picture: str, kind: str, tmp_path: Path) -> None:
    assert worst(PICTURES[picture](), KINDS[kind], served(KINDS[kind], tmp_path)) <= 1


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
