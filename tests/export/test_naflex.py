"""SigLIP 2 with NaFlex against transformers' own processor, model and adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from naflex_checkpoint import gemma, hf_siglip2
from tritonclip_export.checkpoints.extra_architectures import extra_architecture
from tritonclip_export.checkpoints.hugging_face.naflex import (
    PatchEmbeddings,
    inside,
    interpolations,
    join_rows,
    split_rows,
)
from tritonclip_export.checkpoints.hugging_face.processors import hf_preprocess
from tritonclip_export.checkpoints.load import load_checkpoint
from tritonclip_export.errors import CheckpointError
from tritonclip_export.frameworks import torch
from tritonclip_export.parity.comparison import OnnxTower
from tritonclip_export.parity.probes import synthetic_images, to_uint8, transform_images
from tritonclip_export.pipeline import ExportRequest, export

from transformers import AutoProcessor, Siglip2ImageProcessor, Siglip2Model, Siglip2VisionConfig  # isort: skip
from transformers.models.siglip2.modeling_siglip2 import Siglip2VisionEmbeddings  # isort: skip

MOST = 60
TEXTS = ["a photo of a cat", "", "Two DOGS, running_along — the beach!", "杰尼龟 和 妙蛙种子", "far too long " * 60]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose images have other numbers of patches than its table has positions."""
    folder = tmp_path_factory.mktemp("naflex") / "checkpoint"
    hf_siglip2(folder, max_num_patches=MOST, num_patches=36)
    return folder


@pytest.fixture(scope="module")
def repository(source: Path) -> Path:
    out = source.parent / "repository"
    export(ExportRequest(str(source), out))
    return out


def theirs(folder: Path, images: list[Image.Image]) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings by transformers alone: its processor, its model."""
    processor, model = AutoProcessor.from_pretrained(folder), Siglip2Model.from_pretrained(folder).eval()
    with torch.no_grad():
        # The processor of both overrules what the image processor's own file says of patches.
        of_images = model.get_image_features(**processor.image_processor(images, return_tensors="pt"))
        of_texts = model.get_text_features(**processor(text=TEXTS, return_tensors="pt"))
    return of_images.pooler_output, of_texts.pooler_output


@pytest.mark.parametrize("side", [4, 7])
def test_the_positions_are_transformers_at_every_grid(side: int) -> None:
    config = Siglip2VisionConfig(hidden_size=8, num_patches=side**2, patch_size=2)
    own = Siglip2VisionEmbeddings(config).eval()
    served = PatchEmbeddings(own, 64)
    # A single column is another test's.
    grids = torch.tensor([(rows, columns) for rows in range(1, 65) for columns in range(2, 64 // rows + 1)])
    patches = torch.randn(len(grids), 64, 12)
    with torch.no_grad():
        difference = (own(patches, grids) - served(patches, grids))[inside(grids, 64)].abs().max()
    assert difference <= 1e-5


def test_a_single_column_is_a_single_row_turned() -> None:
    """torch on a CPU mistakes the layout of the table for this grid alone, and transformers with it."""
    own = Siglip2VisionEmbeddings(Siglip2VisionConfig(hidden_size=8, num_patches=16, patch_size=2)).eval()
    turned = Siglip2VisionEmbeddings(own.config).eval()
    table = own.position_embedding.weight.data.reshape(4, 4, 8)
    turned.position_embedding.weight.data = table.transpose(0, 1).reshape(16, 8)
    nothing = torch.zeros(1, 9, 12)
    for each in (own, turned):
        each.patch_embedding.bias.data.zero_()
    with torch.no_grad():
        column = PatchEmbeddings(own, 9)(nothing, torch.tensor([[9, 1]]))
        row = turned(nothing, torch.tensor([[1, 9]]))
    assert (column - row).abs().max() <= 1e-6


def test_the_weights_of_an_axis_are_a_mean() -> None:
    weights = interpolations(16, 40)
    assert weights.shape == (40 * 41 // 2, 16)
    assert (weights.sum(dim=1) - 1).abs().max() <= 1e-6
    assert torch.equal(weights[16 * 15 // 2 : 16 * 17 // 2], torch.eye(16))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_rows_carry_patches_and_grids(dtype: torch.dtype) -> None:
    patches, grids = torch.randint(0, 256, (3, 5, 12)).to(dtype), torch.tensor([[1, 5], [300, 2], [4000, 256]])
    back = split_rows(join_rows(patches, grids))
    assert torch.equal(back[0], patches)
    assert torch.equal(back[1], grids)


def test_model_and_tokenizer_are_transformers_own(source: Path) -> None:
    checkpoint = load_checkpoint(str(source))
    model = checkpoint.build()
    images = synthetic_images()
    of_images, of_texts = theirs(source, images)
    with torch.no_grad():
        ours = model.encode_image(transform_images(images, checkpoint.preprocess_cfg))
        read = model.encode_text(checkpoint.tokenization(TEXTS).long())
    # Its processor of torch and its processor of Pillow differ by a level here and there.
    assert (ours - of_images).abs().max() <= 2e-3
    assert (read - of_texts).abs().max() <= 1e-5


def test_padding_and_strange_grids_change_nothing_for_others(source: Path, repository: Path) -> None:
    cfg = load_checkpoint(str(source)).preprocess_cfg
    pixels = to_uint8(transform_images(synthetic_images()[:3], cfg), cfg)
    tower = OnnxTower(repository / "image_encoder" / "1" / "model.onnx")
    expected = tower(pixels.numpy())
    grids = split_rows(pixels)[1]
    noisy = pixels.clone()
    noisy[:, 1:][~inside(grids, MOST)] = 255
    assert not torch.equal(noisy, pixels)
    assert np.abs(tower(noisy.numpy()) - expected).max() <= 1e-6
    for strange in ([0, 0], [255, 255], [65535, 65535], [0, 65535], [1, 65535]):
        mixed = noisy.clone()
        mixed[1] = join_rows(noisy[1:2, 1:], torch.tensor([strange]))
        embedded = tower(mixed.numpy())
        assert np.isfinite(embedded).all()
        assert np.abs(embedded[[0, 2]] - expected[[0, 2]]).max() <= 1e-6


def test_the_spec_and_the_configs_carry_the_patches(repository: Path) -> None:
    spec = json.loads((repository / "manifest.json").read_text())["spec"]["image"]
    assert (spec["resize_mode"], spec["patch_size"], spec["max_num_patches"], spec["to_rgb"]) == (
        *("naflex", 16, MOST),
        "first",
    )
    for name in ("preprocess", "image_encoder"):
        config = (repository / name / "config.pbtxt").read_text()
        assert "dims: 61\n  dims: 768\n" in config.replace("    ", "  ")


@pytest.mark.parametrize("settings", [{"model_input_names": ["input_ids", "attention_mask"]}, {"padding_side": "left"}])
def test_the_tokenizers_file_decides_masks_and_padding(tmp_path: Path, settings: dict[str, Any]) -> None:
    hf_siglip2(tmp_path, max_num_patches=MOST, **settings)
    checkpoint = load_checkpoint(str(tmp_path))
    with torch.no_grad():
        ours = checkpoint.build().encode_text(checkpoint.tokenization(TEXTS).long())
    assert (ours - theirs(tmp_path, synthetic_images()[:1])[1]).abs().max() <= 1e-5


def test_another_tokenizers_directory_is_lowered_too(source: Path, tmp_path: Path) -> None:
    """Google's files name Gemma's class, and AutoTokenizer knows better only beside the model's config."""
    gemma(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "tokenizer_class": "GemmaTokenizer"}))
    tokenization = load_checkpoint(str(source), tokenizer=tmp_path).tokenization
    assert torch.equal(tokenization(["A PHOTO of Cats"]), tokenization(["a photo of cats"]))


def test_the_named_architecture_is_what_its_directory_would_be(tmp_path: Path) -> None:
    found = extra_architecture("ViT-B-16-SigLIP2-NaFlex")
    assert found is not None
    model_cfg, preprocess_cfg = found
    Siglip2ImageProcessor().save_pretrained(tmp_path)
    assert preprocess_cfg == hf_preprocess(tmp_path / "preprocessor_config.json", model_cfg["vision_cfg"])
    assert model_cfg["vision_cfg"] == {"image_size": 256, "patch_size": 16, "num_patches": 256, "max_num_patches": 256}


@pytest.mark.parametrize(
    ("file", "section", "changes", "message"),
    [
        ("config.json", "vision_config", {"num_patches": 35}, "has num_patches 35, .* allowed: a square number"),
        ("config.json", "vision_config", {"patch_size": [16, 14]}, r"patch_size \[16, 14\]"),
        ("config.json", "vision_config", {"vision_use_head": False}, "the image tower has no head"),
        ("config.json", "text_config", {"projection_size": 32}, "the towers are of two models"),
        ("preprocessor_config.json", None, {"patch_size": 14}, "has patch_size 14 .* takes patches of 16"),
        ("preprocessor_config.json", None, {"max_num_patches": True}, "max_num_patches True"),
        ("preprocessor_config.json", None, {"max_num_patches": None}, "max_num_patches None"),
        ("preprocessor_config.json", None, None, r"it has no preprocessor_config\.json"),
    ],
)
def test_what_does_not_fit_is_refused(
    source: Path, tmp_path: Path, file: str, section: str | None, changes: dict[str, Any] | None, message: str
) -> None:
    for path in source.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / file).unlink()
    if changes is not None:
        values = json.loads((source / file).read_text())
        (values if section is None else values[section]).update(changes)
        (tmp_path / file).write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(str(tmp_path))
