"""Adapters that PEFT trained on SigLIP 2 with NaFlex, merged and exported, against PEFT's own forward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_models import peft_wrap, quiet
from naflex_checkpoint import hf_siglip2
from tritonclip_export.checkpoints.hugging_face.naflex import inside, split_rows
from tritonclip_export.checkpoints.load import load_checkpoint
from tritonclip_export.frameworks import torch
from tritonclip_export.parity.comparison import OnnxTower
from tritonclip_export.parity.probes import synthetic_images, to_uint8, transform_images
from tritonclip_export.pipeline import ExportRequest, export

from transformers import Siglip2Model, Siglip2VisionModel  # isort: skip - after torch

TARGETS = ["q_proj", "v_proj", "fc1", "patch_embedding", "position_embedding"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("naflex")
    hf_siglip2(folder, max_num_patches=60, num_patches=36)
    return folder


def trained(kind: Any, source: Path, folder: Path) -> Any:
    """A LoRA on every kind of module, saved into `folder`."""
    with quiet():
        model = peft_wrap(kind.from_pretrained(source), r=4, target_modules=TARGETS)
        torch.manual_seed(1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.normal_(std=0.1)
        model.save_pretrained(str(folder))
    return model.eval()


@pytest.mark.parametrize("kind", [Siglip2Model, Siglip2VisionModel])
def test_a_lora_is_merged(kind: Any, source: Path, tmp_path: Path) -> None:
    model = trained(kind, source, tmp_path / "lora")
    manifest = export(ExportRequest(str(source), tmp_path / "out", adapters=[(tmp_path / "lora", 1.0)]))
    assert "1 adapters unmerged" in manifest["parity"]["reference"]
    cfg = load_checkpoint(str(source)).preprocess_cfg
    rows = transform_images(synthetic_images(), cfg)
    patches, grids = split_rows(rows)
    inputs = {"pixel_values": patches, "spatial_shapes": grids, "pixel_attention_mask": inside(grids, 60).int()}
    with torch.no_grad():
        features = model.get_image_features(**inputs) if kind is Siglip2Model else model(**inputs)
        plain = Siglip2Model.from_pretrained(source).eval().get_image_features(**inputs)
    expected, before = (torch.nn.functional.normalize(each.pooler_output, dim=-1).numpy() for each in (features, plain))
    served = OnnxTower(tmp_path / "out" / "image_encoder" / "1" / "model.onnx")(to_uint8(rows, cfg).numpy())
    assert np.abs(served - expected).max() <= 1e-4
    assert np.abs(served - before).max() > 1e-2
