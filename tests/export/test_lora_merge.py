"""The test of truth: a merged CLIP answers as PEFT's own forward does with the adapter unmerged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from lora_models import (
    TRAINED_TOKENS,
    Embeddings,
    largest_difference,
    open_clip_embeddings,
    random_state_dict,
    train_adapter,
)
from tritonclip_export.adapters.lora import merge_adapters, read_adapter

# Largest absolute difference of a normalized embedding.
TOLERANCE = 2e-5
# The adapted model must be far enough from the base for a wrong fold to show.
VISIBLE = 1e-2

STATE_DICT = random_state_dict()
QKV = ["q_proj", "k_proj", "v_proj"]
TOKENS = {"token_embedding": TRAINED_TOKENS}

BOTH_TOWERS: dict[str, tuple[str, dict[str, Any]]] = {
    "hf plain": ("hf", {"target_modules": [*QKV, "out_proj", "fc1", "fc2"]}),
    "hf q and v": ("hf", {"target_modules": ["q_proj", "v_proj"]}),
    "hf rslora": ("hf", {"target_modules": [*QKV, "fc1"], "use_rslora": True}),
    "hf dora": ("hf", {"target_modules": [*QKV, "out_proj", "fc2"], "use_dora": True}),
    "hf dora, rslora": ("hf", {"target_modules": ["fc1"], "use_dora": True, "use_rslora": True}),
    "hf rank_pattern": ("hf", {"target_modules": ["q_proj", "fc1"], "rank_pattern": {"fc1": 2, "1.self_attn.*": 7}}),
    "hf alpha_pattern": (
        "hf",
        {"target_modules": ["q_proj", "fc1"], "alpha_pattern": {"vision_model.*q_proj": 24, "fc1": 1}},
    ),
    "hf both patterns, rslora": (
        "hf",
        {
            "target_modules": ["q_proj", "fc1", "text_projection", "visual_projection"],
            "rank_pattern": {"q_proj": 2, "layers.1.mlp.fc1": 9},
            "alpha_pattern": {"^text_projection": 3, "layers.0.mlp.fc1": 20},
            "use_rslora": True,
        },
    ),
    "hf bias all": ("hf", {"target_modules": ["q_proj"], "bias": "all"}),
    "hf bias lora_only": ("hf", {"target_modules": ["k_proj", "v_proj", "fc1"], "bias": "lora_only"}),
    "hf lora_bias": ("hf", {"target_modules": ["v_proj", "fc1"], "lora_bias": True}),
    "hf lora_bias, bias all": ("hf", {"target_modules": ["fc1"], "lora_bias": True, "bias": "all"}),
    "hf bias all and modules_to_save": (
        "hf",
        {"target_modules": ["q_proj"], "bias": "all", "modules_to_save": ["post_layernorm"]},
    ),
    "hf modules_to_save": (
        "hf",
        {
            "target_modules": ["fc1"],
            "modules_to_save": ["visual_projection", "text_projection", "final_layer_norm"],
        },
    ),
    "hf conv and embeddings": (
        "hf",
        {"target_modules": ["patch_embedding", "token_embedding", "position_embedding"]},
    ),
    "hf conv and embeddings, dora": (
        "hf",
        {"target_modules": ["patch_embedding", "token_embedding", "position_embedding"], "use_dora": True},
    ),
    "hf all-linear": ("hf", {"target_modules": "all-linear"}),
    "hf all-linear, dora": ("hf", {"target_modules": "all-linear", "use_dora": True}),
    "hf trainable tokens": ("hf", {"target_modules": ["fc1"], "trainable_token_indices": TOKENS}),
    "hf layers_to_transform": ("hf", {"target_modules": ["q_proj", "fc2"], "layers_to_transform": [1]}),
    "hf exclude, regex": (
        "hf",
        {"target_modules": r".*(q_proj|fc1)", "exclude_modules": r".*layers\.0.*"},
    ),
    "open_clip attn": ("open_clip", {"target_modules": ["attn"]}),
    "open_clip attn and mlp": ("open_clip", {"target_modules": ["attn", "c_fc", "c_proj"]}),
    "open_clip rslora, patterns": (
        "open_clip",
        {
            "target_modules": ["attn", "c_fc"],
            "use_rslora": True,
            "rank_pattern": {"resblocks.0.attn": 2},
            "alpha_pattern": {"attn": 5, "visual.*c_fc": 16},
        },
    ),
    "open_clip bias all": ("open_clip", {"target_modules": ["attn"], "bias": "all"}),
    "open_clip bias lora_only": ("open_clip", {"target_modules": ["attn", "c_fc"], "bias": "lora_only"}),
    "open_clip lora_bias": ("open_clip", {"target_modules": ["attn", "c_proj"], "lora_bias": True}),
    "open_clip dora": ("open_clip", {"target_modules": ["c_fc", "c_proj"], "use_dora": True}),
    "open_clip conv and embedding": ("open_clip", {"target_modules": ["conv1", "token_embedding"]}),
    "open_clip conv and embedding, dora": (
        "open_clip",
        {"target_modules": ["conv1", "token_embedding"], "use_dora": True},
    ),
    "open_clip all-linear": ("open_clip", {"target_modules": "all-linear"}),
    "open_clip modules_to_save": (
        "open_clip",
        {"target_modules": ["c_fc"], "modules_to_save": ["ln_final", "ln_post"]},
    ),
    "open_clip trainable tokens": (
        "open_clip",
        {"target_modules": ["c_fc"], "trainable_token_indices": TOKENS},
    ),
    "open_clip layers_to_transform": (
        "open_clip",
        {"target_modules": ["attn"], "layers_to_transform": [0], "layers_pattern": "resblocks"},
    ),
}


@pytest.fixture(scope="module")
def base() -> Embeddings:
    return open_clip_embeddings(STATE_DICT)


def merged_embeddings(path: Path, weight: float = 1.0) -> Embeddings:
    return open_clip_embeddings(merge_adapters(STATE_DICT, [(read_adapter(path), weight)]).state_dict)


@pytest.mark.parametrize("name", BOTH_TOWERS)
def test_merged_equals_unmerged(name: str, tmp_path: Path, base: Embeddings) -> None:
    namespace, config = BOTH_TOWERS[name]
    trained = train_adapter(tmp_path / "adapter", namespace, STATE_DICT, **config)
    for tower, plain in zip(trained.embeddings, base, strict=True):
        assert (tower - plain).abs().max() > VISIBLE
    assert largest_difference(merged_embeddings(trained.path), trained.embeddings) <= TOLERANCE


ONE_TOWER: dict[str, tuple[str, dict[str, Any]]] = {
    "hf text, transformers 5 names": ("hf", {"part": "text_model", "target_modules": ["q_proj", "fc1"]}),
    "hf vision, transformers 5 names": ("hf", {"part": "vision_model", "target_modules": ["q_proj", "fc1"]}),
    "hf text, class not recorded": (
        "hf",
        {"part": "text_model", "target_modules": ["q_proj"], "task_type": "FEATURE_EXTRACTION"},
    ),
    "hf vision, class not recorded": (
        "hf",
        {"part": "vision_model", "target_modules": ["fc2"], "task_type": "FEATURE_EXTRACTION"},
    ),
    "hf text tokens": (
        "hf",
        {"part": "text_model", "target_modules": ["fc1"], "trainable_token_indices": TRAINED_TOKENS},
    ),
    "hf text of a whole CLIP": ("hf", {"target_modules": r"text_model.*q_proj"}),
    "open_clip visual alone": ("open_clip", {"part": "visual", "target_modules": ["attn", "conv1"]}),
    "open_clip visual of a whole CLIP": ("open_clip", {"target_modules": r"visual\..*(attn|c_fc)"}),
}


@pytest.mark.parametrize("name", ONE_TOWER)
def test_adapter_of_one_tower(name: str, tmp_path: Path, base: Embeddings) -> None:
    namespace, config = ONE_TOWER[name]
    trained = train_adapter(tmp_path / "adapter", namespace, STATE_DICT, **config)
    changes = [(tower - plain).abs().max().item() for tower, plain in zip(trained.embeddings, base, strict=True)]
    assert max(changes) > VISIBLE
    assert min(changes) <= TOLERANCE
    assert largest_difference(merged_embeddings(trained.path), trained.embeddings) <= TOLERANCE


def test_transformers_4_names_of_one_tower(tmp_path: Path) -> None:
    trained = train_adapter(tmp_path / "new", "hf", STATE_DICT, part="text_model", target_modules=["q_proj"])
    weights = trained.path / "adapter_model.safetensors"
    prefix = "base_model.model."
    old = {key.replace(prefix, prefix + "text_model."): tensor for key, tensor in load_file(weights).items()}
    save_file(old, weights)
    assert largest_difference(merged_embeddings(trained.path), trained.embeddings) <= TOLERANCE


def test_bin_file(tmp_path: Path) -> None:
    trained = train_adapter(tmp_path / "adapter", "open_clip", STATE_DICT, target_modules=["attn"], safe=False)
    assert not (trained.path / "adapter_model.safetensors").exists()
    assert largest_difference(merged_embeddings(trained.path), trained.embeddings) <= TOLERANCE


def test_ignored_alpha_would_fail(tmp_path: Path) -> None:
    """The tolerance is tight enough to see a scale that is wrong by half a percent."""
    trained = train_adapter(tmp_path / "adapter", "hf", STATE_DICT, target_modules=["q_proj"])
    assert largest_difference(merged_embeddings(trained.path, 1.005), trained.embeddings) > 2 * TOLERANCE
