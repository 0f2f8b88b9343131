"""Methods that change the graph, written from their formulas and run unmerged, as hooks, on Hugging Face's CLIP."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graph_adapter_models import MODEL_CFG, state_dict
from tritonclip_export.checkpoints.hugging_face.clip import build_hf_clip
from tritonclip_export.frameworks import torch


def hf_clip(model_cfg: dict[str, Any] | None = None) -> Any:
    """The CLIP of `graph_adapter_models.state_dict`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return build_hf_clip(model_cfg or MODEL_CFG, state_dict(model_cfg))


def hf_image_features(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """float32 [N, D], not normalized."""
    with torch.no_grad():
        return model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)


def hf_text_features(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """float32 [N, D], not normalized."""
    with torch.no_grad():
        return model.text_projection(model.text_model(input_ids=ids.long()).pooler_output)


def add_prompts(
    model: Any, first: torch.Tensor, deep: Mapping[int, torch.Tensor], *, append_before_norm: bool = False
) -> None:
    """VPT's prompts [tokens, width] after the class token, or MaPLe's at the end and before the norm.

    `deep` holds those that overwrite the first before a layer.
    """
    count = len(first)

    def joined(_: Any, __: Any, hidden: torch.Tensor) -> torch.Tensor:
        prompts = first.expand(len(hidden), -1, -1)
        parts = [hidden, prompts] if append_before_norm else [hidden[:, :1], prompts, hidden[:, 1:]]
        return torch.cat(parts, dim=1)

    def overwritten(prompts: torch.Tensor) -> Any:
        def hook(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
            values = prompts.expand(len(args[0]), -1, -1)
            hidden = args[0].clone()
            if append_before_norm:
                hidden[:, -count:] = values
            else:
                hidden[:, 1 : 1 + count] = values
            return (hidden, *args[1:])

        return hook

    vision = model.vision_model
    (vision.embeddings if append_before_norm else vision.pre_layrnorm).register_forward_hook(joined)
    for layer, prompts in deep.items():
        vision.encoder.layers[layer].register_forward_pre_hook(overwritten(prompts))


def clip_adapter(features: torch.Tensor, down: torch.Tensor, up: torch.Tensor, ratio: float = 0.2) -> torch.Tensor:
    """CLIP-Adapter's share of the features and the rest of them (https://arxiv.org/abs/2110.04544, equation 6)."""
    return ratio * ((features @ down.T).relu() @ up.T).relu() + (1 - ratio) * features


def add_bottlenecks(model: Any, folder: Path) -> None:
    """AdapterHub's Pfeiffer adapters of the folder: y + U relu(D y) of every layer's output y, in both towers."""
    tensors = torch.load(folder / "pytorch_adapter.bin", weights_only=True)

    def added(layer: str) -> Any:
        named = {name.split("_adapters.adapters.")[1]: t for name, t in tensors.items() if name.startswith(f"{layer}.")}
        down, down_bias, up, up_bias = (
            named[f"{folder.name}.adapter_{part}"] for part in ("down.0.weight", "down.0.bias", "up.weight", "up.bias")
        )

        def hook(_: Any, __: Any, hidden: torch.Tensor) -> torch.Tensor:
            return hidden + (hidden @ down.T + down_bias).relu() @ up.T + up_bias

        return hook

    for tower in ("text_model", "vision_model"):
        for index, layer in enumerate(model.get_submodule(f"{tower}.encoder.layers")):
            layer.register_forward_hook(added(f"{tower}.encoder.layers.{index}"))
