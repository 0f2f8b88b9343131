"""Files of CLIP-LoRA: merged, they answer as its layers do unmerged."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

import lora_layers as layers
from lora_files import TOLERANCE, embeddings, merge_file
from lora_models import MODEL_CFG, plain_model, random_state_dict
from tritonclip_export.adapters.lora import read_adapter
from tritonclip_export.checkpoints.model import load_strictly, new_model
from tritonclip_export.errors import AdapterError
from tritonclip_export.frameworks import torch

STATE_DICT = random_state_dict()


@pytest.fixture
def model() -> Any:
    torch.manual_seed(11)
    return plain_model("open_clip", STATE_DICT)


def clip_lora_base(vision_layers: int) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    cfg = {
        **MODEL_CFG,
        "vision_cfg": {**MODEL_CFG["vision_cfg"], "layers": vision_layers, "width": 32, "head_width": 16},
        "text_cfg": {**MODEL_CFG["text_cfg"], "layers": 12},
    }
    torch.manual_seed(3)
    return cfg, dict(new_model(cfg).state_dict())


def clip_lora_file(path: Path, adapted: list[Any], params: str, r: int, alpha: float, **metadata: Any) -> None:
    """CLIP-LoRA's `save_lora`, after its `apply_lora` on the blocks `adapted`."""
    names = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "proj"}
    weights: dict[str, Any] = {}
    for index, block in enumerate(adapted):
        block.attn = layers.Attention(block.attn)
        saved = {}
        for letter in params:
            layer = layers.Linear(getattr(block.attn, names[letter]), r, alpha / math.sqrt(r))
            # Many adapted blocks; smaller steps keep the features in a range where float32 is exact enough.
            layer.lora_B.data *= 0.3
            setattr(block.attn, names[letter], layer)
            saved[names[letter]] = {"w_lora_A": layer.lora_A.data, "w_lora_B": layer.lora_B.data}
        weights[f"layer_{index}"] = saved
    settings = {"r": r, "alpha": alpha, "params": list(params), **metadata}
    torch.save({"weights": weights, "metadata": settings}, path)


CLIP_LORA = {
    "both, all": ("both", "all", range(12), range(12), 12),
    "text, half-up": ("text", "half-up", range(6, 12), (), 12),
    "vision, top3": ("vision", "top3", (), range(9, 12), 12),
    "ViT-L/14, all": ("both", "all", range(12), range(24), 24),
    "ViT-L/14, all, as it was first": ("both", "all", range(12), range(21), 24),
    "ViT-L/14, half-up": ("vision", "half-up", (), range(12, 24), 24),
}


@pytest.mark.parametrize("name", CLIP_LORA)
def test_clip_lora(name: str, tmp_path: Path) -> None:
    encoder, position, text, vision, vision_layers = CLIP_LORA[name]
    cfg, state_dict = clip_lora_base(vision_layers)
    model = new_model(cfg)
    load_strictly(model, state_dict, "test")
    base = embeddings(model)
    torch.manual_seed(4)
    adapted = [layers.blocks(model, "text")[i] for i in text] + [layers.blocks(model, "vision")[i] for i in vision]
    path = tmp_path / "lora_weights.pt"
    clip_lora_file(path, adapted, "qkvo", 2, 1, encoder=encoder, position=position)
    expected = embeddings(model)
    merged = new_model(cfg)
    load_strictly(merged, merge_file(state_dict, path).state_dict, "test")
    for tower, plain, ours in zip(expected, base, embeddings(merged), strict=True):
        assert (tower - ours).abs().max() <= TOLERANCE
        changed = (tower - plain).abs().max() > 1e-3
        assert changed == (len(text if tower is expected[1] else vision) > 0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"position": "middle"}, "position in the metadata .* 'middle'; allowed: top, top1"),
        ({"encoder": "audio"}, "encoder .* 'audio'; allowed: text, vision, both"),
        ({"position": "half-up"}, "has 4 layers, but position 'half-up' of encoder 'text' has 6"),
        ({"encoder": "both"}, "has 4 layers, but position 'bottom' of encoder 'both' has 8"),
        ({"r": 3}, "has rank 2, its metadata says 3"),
        ({"alpha": None}, "alpha in the metadata .* must be a number above 0"),
    ],
)
def test_clip_lora_metadata_of_another_file(change: dict[str, Any], words: str, model: Any, tmp_path: Path) -> None:
    path = tmp_path / "lora_weights.pt"
    adapted = layers.blocks(model, "text", "vision")
    clip_lora_file(path, adapted, "q", 2, 1, encoder="text", position="bottom")
    content = torch.load(path, weights_only=True)
    content["metadata"].update(change)
    torch.save(content, path)
    with pytest.raises(AdapterError, match=words):
        read_adapter(path)


def test_alpha_that_the_file_stores_otherwise(model: Any, tmp_path: Path) -> None:
    path = tmp_path / "lora_weights.pt"
    clip_lora_file(path, layers.blocks(model, "text", "vision"), "q", 2, 1, encoder="text", position="bottom")
    with pytest.raises(AdapterError, match="stores alpha 1, not 4"):
        read_adapter(path, alpha=4)
