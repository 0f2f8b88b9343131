"""Adapters that PEFT trained on other CLIPs than the plain ones: timm's towers, SigLIP, Chinese-CLIP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from families import SHRUNK_EVA
from family_checkpoints import shrunk_tower
from lora_files import TOLERANCE, assert_merged_equals, embeddings, merge_file
from lora_models import (
    MODEL_CFG,
    Embeddings,
    disturb,
    largest_difference,
    peft_wrap,
    plain_model,
    quiet,
    random_state_dict,
    set_config,
)
from tritonclip_export.checkpoints.hugging_face.towers import new_hf_model
from tritonclip_export.checkpoints.model import load_strictly, new_model
from tritonclip_export.frameworks import torch

STATE_DICT = random_state_dict()


def peft_directory(model: Any, path: Path, **config: Any) -> Path:
    wrapped = peft_wrap(model, **config)
    disturb(wrapped)
    with quiet():
        wrapped.save_pretrained(str(path))
    return path


# timm's own test model: a ViT with attention pooling, as SigLIP's.
TIMM_CFG: dict[str, Any] = {
    **MODEL_CFG,
    "vision_cfg": {
        "image_size": 160,
        "timm_model_name": "test_vit3",
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "linear",
    },
}


@pytest.fixture
def timm_tower() -> Any:
    torch.manual_seed(0)
    return new_model(TIMM_CFG)


def timm_embeddings(model: Any) -> Embeddings:
    return embeddings(model, torch.randn(3, 3, 160, 160, generator=torch.Generator().manual_seed(1)))


TIMM_TARGETS = {
    "fused": ["qkv", "proj", "fc1", "fc2"],
    "pool": r".*attn_pool\.(q|kv|proj|mlp\.fc1)",
    "patches and text": r".*(patch_embed\.proj|c_fc|transformer.*attn)",
}


@pytest.mark.parametrize("name", TIMM_TARGETS)
def test_open_clip_with_a_timm_tower(name: str, timm_tower: Any, tmp_path: Path) -> None:
    state_dict = {key: tensor.clone() for key, tensor in timm_tower.state_dict().items()}
    plain = timm_embeddings(timm_tower)
    peft_directory(timm_tower, tmp_path, target_modules=TIMM_TARGETS[name])
    expected = timm_embeddings(timm_tower)
    assert largest_difference(expected, plain) > 1e-3
    merged = new_model(TIMM_CFG)
    load_strictly(merged, merge_file(state_dict, tmp_path).state_dict, "test")
    assert largest_difference(timm_embeddings(merged), expected) <= TOLERANCE


def test_a_timm_tower_that_was_trained_alone(timm_tower: Any, tmp_path: Path) -> None:
    state_dict = {key: tensor.clone() for key, tensor in timm_tower.state_dict().items()}
    peft_directory(timm_tower.visual, tmp_path, target_modules=["qkv"])
    expected = timm_embeddings(timm_tower)
    merged = new_model(TIMM_CFG)
    load_strictly(merged, merge_file(state_dict, tmp_path).state_dict, "test")
    assert largest_difference(timm_embeddings(merged), expected) <= TOLERANCE


@pytest.mark.parametrize("targets", [["qkv"], ["qkv", "proj", "fc1"]])
def test_the_fused_projection_of_eva_never_runs(targets: list[str], tmp_path: Path) -> None:
    """The attention of EVA01-g-14 and EVA02-E-14 keeps q and v biases beside the layer, and reads its weight."""
    vision = {"timm_model_name": shrunk_tower("eva_giant_patch14_224", **SHRUNK_EVA), "timm_pool": "token"}
    cfg = {**MODEL_CFG, "vision_cfg": {**vision, "image_size": 224, "timm_proj": None}}
    torch.manual_seed(0)
    model = new_model(cfg)
    state_dict = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    pixels = torch.randn(2, 3, 224, 224)
    plain = embeddings(model, pixels)
    peft_directory(model, tmp_path, target_modules=targets)
    expected = embeddings(model, pixels)
    assert (largest_difference(expected, plain) > 1e-3) == ("proj" in targets)
    result = merge_file(state_dict, tmp_path)
    merged = new_model(cfg)
    load_strictly(merged, result.state_dict, "test")
    assert largest_difference(embeddings(merged, pixels), expected) <= TOLERANCE
    report = result.report.adapters[0]
    assert [entry.key for entry in report.skipped] == [f"visual.trunk.blocks.{block}.attn.qkv" for block in (0, 1)]
    assert "2 adapted layers never run" in report.warnings[0]


WIDTHS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**WIDTHS, "image_size": 16, "patch_size": 8}
FAMILIES: dict[str, dict[str, Any]] = {
    "siglip": {
        "model_type": "siglip",
        "text_config": {**WIDTHS, "vocab_size": 1000, "max_position_embeddings": 12},
        "vision_config": VISION,
    },
    "chinese_clip": {
        "model_type": "chinese_clip",
        "projection_dim": 24,
        "text_config": {**WIDTHS, "vocab_size": 1000, "max_position_embeddings": 12},
        "vision_config": VISION,
    },
}
HF_TARGETS: dict[str, tuple[str, Any]] = {
    "siglip all-linear": ("siglip", "all-linear"),
    "siglip dora": ("siglip", ["q_proj", "fc1"]),
    "siglip attention pool": ("siglip", r".*head\.attention"),
    "chinese_clip both towers": ("chinese_clip", ["query", "value", "q_proj", "fc2"]),
}


BASE_CLASSES = {"siglip": "SiglipModel", "chinese_clip": "ChineseCLIPModel"}


def hf_model(family: str) -> Any:
    torch.manual_seed(0)
    with quiet():
        return new_hf_model(FAMILIES[family])


def hf_family_embeddings(model: Any) -> Embeddings:
    with quiet():
        return embeddings(model)


@pytest.mark.parametrize("name", HF_TARGETS)
def test_other_families_of_transformers(name: str, tmp_path: Path) -> None:
    family, targets = HF_TARGETS[name]
    model = hf_model(family)
    state_dict = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    plain = hf_family_embeddings(model)
    peft_directory(model, tmp_path, target_modules=targets, use_dora=name.endswith("dora"))
    set_config(tmp_path, auto_mapping={"base_model_class": BASE_CLASSES[family]})
    expected = hf_family_embeddings(model)
    assert largest_difference(expected, plain) > 1e-3
    result = merge_file(state_dict, tmp_path)
    merged = hf_model(family)
    merged.load_state_dict(result.state_dict)
    assert largest_difference(hf_family_embeddings(merged), expected) <= TOLERANCE
    dead = [entry.key for entry in result.report.adapters[0].skipped]
    assert dead == (["vision_model.head.attention.out_proj"] if name == "siglip all-linear" else [])


@pytest.mark.parametrize("part", ["text_model", "vision_model"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_tower_of_another_family_that_was_trained_alone(family: str, part: str, tmp_path: Path) -> None:
    model = hf_model(family)
    state_dict = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    peft_directory(model.get_submodule(part), tmp_path, target_modules=["q_proj", "query", "fc1"])
    expected = hf_family_embeddings(model)
    merged = hf_model(family)
    merged.load_state_dict(merge_file(state_dict, tmp_path).state_dict)
    assert largest_difference(hf_family_embeddings(merged), expected) <= TOLERANCE


def test_attention_rebuilt_with_linear_layers(tmp_path: Path) -> None:
    """clipora and others put `attn.qkv` and `attn.proj` in the place of nn.MultiheadAttention, and PEFT on them."""
    import lora_layers as layers

    model = plain_model("open_clip", STATE_DICT)
    for block in layers.blocks(model, "text", "vision"):
        block.attn = layers.FusedAttention(block.attn)
    peft_directory(model, tmp_path, target_modules=["qkv", "attn.proj"])
    assert_merged_equals(embeddings(model), STATE_DICT, tmp_path)
