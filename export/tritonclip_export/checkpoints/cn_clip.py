"""Chinese-CLIP as its authors' package `cn_clip` saves it, by the names of transformers' `ChineseCLIPModel`."""

from __future__ import annotations

from collections.abc import Mapping

from tritonclip_export.checkpoints import key_mapping
from tritonclip_export.errors import CheckpointError
from tritonclip_export.frameworks import torch

TEXT_TOWER = "bert."
# Saved, but neither package runs it.
_UNUSED = "bert.pooler."


def is_cn_clip(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether these are cn_clip's names: a BERT beside an image tower of OpenAI's names."""
    return any(name.startswith(TEXT_TOWER) for name in tensors)


def from_cn_clip(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """cn_clip's names to `ChineseCLIPModel`'s; both projections are transposed.

    Raises:
        CheckpointError: an image tower other than a ViT, or no text projection.
    """
    if "text_projection" not in tensors:
        raise CheckpointError("the weights have a BERT but no text_projection; give a whole Chinese-CLIP")
    visual = {name: tensor for name, tensor in tensors.items() if name.startswith("visual.") or name == "logit_scale"}
    text = {
        name.replace(TEXT_TOWER, "text_model.", 1): tensor
        for name, tensor in tensors.items()
        if name.startswith(TEXT_TOWER) and not name.startswith(_UNUSED)
    }
    return {**key_mapping.to_hf(visual), **text, "text_projection.weight": tensors["text_projection"].t().contiguous()}
