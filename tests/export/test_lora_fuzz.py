"""Random set-ups of LoRA on a small Hugging Face CLIP: merged, each equals PEFT's forward."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from lora_models import largest_difference, open_clip_embeddings, random_state_dict, train_adapter
from tritonclip_export.adapters.lora import merge_adapters, read_adapter
from tritonclip_export.frameworks import torch

STATE_DICT = random_state_dict()
MODULES = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2", "visual_projection", "text_projection"]
TABLES = ["patch_embedding", "token_embedding"]
COUNT = 60

pytestmark = pytest.mark.slow


def draw(seed: int) -> dict[str, Any]:
    """A set-up that PEFT accepts."""
    chance = random.Random(seed)
    config: dict[str, Any] = {"r": chance.choice([1, 2, 4, 7]), "lora_alpha": chance.choice([1, 3, 16])}
    chosen = sorted(chance.sample(MODULES, chance.randint(1, 4)))
    tables = chance.sample(TABLES, chance.choice([0, 0, 1]))
    config["target_modules"] = chance.choice(["all-linear", rf".*\.({'|'.join(chosen)})", chosen + tables])
    config["use_rslora"] = chance.random() < 0.3
    config["use_dora"] = not tables and chance.random() < 0.25
    config["bias"] = chance.choice(["none", "none", "all", "lora_only"])
    if chance.random() < 0.3:
        config["rank_pattern"] = {chance.choice(chosen): chance.choice([1, 3])}
        config["alpha_pattern"] = {chance.choice(chosen): 5}
    if isinstance(config["target_modules"], list) and not tables and chance.random() < 0.3:
        config["target_modules"] = [name for name in chosen if not name.endswith("projection")] or ["fc1"]
        config["layers_to_transform"] = [chance.choice([0, 1])]
    if chance.random() < 0.3:
        config["modules_to_save"] = [chance.choice(["post_layernorm", "final_layer_norm", "pre_layrnorm"])]
    return config


@pytest.mark.parametrize("seed", range(COUNT))
def test_merged_it_is_pefts_forward(seed: int, tmp_path: Path) -> None:
    config = draw(seed)
    torch.manual_seed(seed)  # PEFT draws A
    trained = train_adapter(tmp_path / "a", "hf", STATE_DICT, **config)
    assert largest_difference(trained.embeddings, open_clip_embeddings(STATE_DICT)) > 1e-4, config
    merged = merge_adapters(STATE_DICT, [(read_adapter(trained.path), 1.0)]).state_dict
    assert largest_difference(trained.embeddings, open_clip_embeddings(merged)) <= 1e-5, config
