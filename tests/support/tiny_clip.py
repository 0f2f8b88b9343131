"""A CLIP small enough to export in seconds, with CLIP's real vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from tritonclip_export.checkpoints.model import new_model
from tritonclip_export.frameworks import torch

MODEL_CFG: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 48, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
PREPROCESS_CFG: dict[str, Any] = {
    "size": 32,
    "mean": [0.4, 0.5, 0.6],
    "std": [0.2, 0.3, 0.25],
    "interpolation": "bilinear",
    "resize_mode": "squash",
    "fill_color": 0,
}


def tiny_state_dict(model_cfg: dict[str, Any] | None = None, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights; biases and scales are perturbed too, so that a forgotten one shows."""
    torch.manual_seed(seed)
    tensors = dict(new_model(model_cfg or MODEL_CFG).state_dict())
    return {
        key: value + 0.1 * torch.randn_like(value) if value.ndim == 1 else value.clone()
        for key, value in tensors.items()
    }


def write_tiny_checkpoint(
    folder: Path,
    model_cfg: dict[str, Any] | None = None,
    weights: dict[str, torch.Tensor] | None = None,
    **preprocess: Any,
) -> Path:
    """An open_clip directory, of MODEL_CFG unless given; `preprocess` overrides entries of its preprocess_cfg."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": model_cfg or MODEL_CFG, "preprocess_cfg": {**PREPROCESS_CFG, **preprocess}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(weights or tiny_state_dict(), folder / "open_clip_model.safetensors")
    return folder
