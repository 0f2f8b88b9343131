"""Brings a state dict from the shapes in which people keep it to the one that the model loads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tritonclip_export.checkpoints.cn_clip import from_cn_clip, is_cn_clip
from tritonclip_export.checkpoints.model import new_model
from tritonclip_export.errors import CheckpointError
from tritonclip_export.frameworks import open_clip, torch

# Buffers 0, 1, 2 … that old transformers versions saved.
_BUFFERS = re.compile(r"(^|\.)(position_ids|embeddings\.token_type_ids)$")
# What `CustomTextCLIP` keeps below `text.` and `CLIP` does not.
_TEXT_TOWER = ("token_embedding.", "positional_embedding", "transformer.", "ln_final.", "text_projection", "cls_emb")

# Image towers in Apple's own files of MobileCLIP.
_APPLE = "image_encoder.model."

LONG_CLIP_KEPT = 20
_LONG_CLIP_TABLE = "positional_embedding_res"
_LONG_CLIP_STEPS = 4


def normalize_weights(tensors: Mapping[str, torch.Tensor], model_cfg: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Take buffers off, put `text.` where the config wants it, join Long-CLIP's two tables,
    give cn_clip's weights the names of transformers and Apple's those of open_clip.

    `model_cfg` is changed where the weights say more than it does: Long-CLIP's context length.
    """
    named = {name: tensor for name, tensor in tensors.items() if not _BUFFERS.search(name)}
    if "hf_config" in model_cfg and is_cn_clip(named):
        return from_cn_clip(named)
    if "timm_model_name" in model_cfg["vision_cfg"] and any(name.startswith(_APPLE) for name in named):
        named = _from_apple(named, model_cfg)
    for scalar in ("logit_scale", "logit_bias"):
        if scalar in named and "hf_config" not in model_cfg and named[scalar].numel() == 1:
            named[scalar] = named[scalar].reshape(())
    if _LONG_CLIP_TABLE in named:
        named["positional_embedding"] = _join_long_clip(named, named.pop(_LONG_CLIP_TABLE))
        model_cfg["text_cfg"] = {**model_cfg["text_cfg"], "context_length": len(named["positional_embedding"])}
    if _has_custom_text(model_cfg) and not any(name.startswith("text.") for name in named):
        named = {_below_text(name): tensor for name, tensor in named.items()}
    return named


def stretch_context(
    tensors: Mapping[str, torch.Tensor], model_cfg: dict[str, Any]
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Stretch 77 text positions to 248 as Long-CLIP does before it is trained; returns weights and config.

    The first 20 positions, which short captions use, stay; each of the others becomes four, interpolated, and the
    last four continue the last step (https://arxiv.org/abs/2403.15378, section 3.1).

    Raises:
        CheckpointError: the text tower has another number of positions.
    """
    key = next((name for name in ("positional_embedding", "text.positional_embedding") if name in tensors), None)
    if key is None or len(tensors[key]) != 77:
        given = "none by open_clip's name" if key is None else f"{len(tensors[key])}"
        raise CheckpointError(
            f"--stretch-context makes 248 text positions of 77; this checkpoint has {given}; leave the option out"
        )
    table = tensors[key].float()
    steps = torch.arange(_LONG_CLIP_STEPS).reshape(1, -1, 1) / _LONG_CLIP_STEPS
    old, following = table[LONG_CLIP_KEPT:-1, None], table[LONG_CLIP_KEPT + 1 :, None]
    stretched = (old + steps * (following - old)).reshape(-1, table.shape[1])
    last = table[-1] + steps[0] * (table[-1] - table[-2])
    longer = torch.cat([table[:LONG_CLIP_KEPT], stretched, last]).to(tensors[key].dtype)
    text_cfg = {**model_cfg["text_cfg"], "context_length": len(longer)}
    return {**tensors, key: longer}, {**model_cfg, "text_cfg": text_cfg}


def _from_apple(tensors: dict[str, torch.Tensor], model_cfg: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """By open_clip's own conversion, which looks at the model that is to load them."""
    try:
        converted = open_clip.convert.convert_state_dict(new_model(model_cfg, empty=True), tensors)
    except (AttributeError, KeyError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"the weights have the names of Apple's MobileCLIP, but open_clip cannot convert them ({error!r}); give "
            "the architecture that they were trained with, and the whole file"
        ) from error
    return dict(converted)


def _join_long_clip(tensors: Mapping[str, torch.Tensor], trained: torch.Tensor) -> torch.Tensor:
    """Long-CLIP reads the first 20 positions of one table and the rest of the other."""
    kept = tensors.get("positional_embedding")
    if kept is None or kept.shape != trained.shape:
        raise CheckpointError(
            f"the weights have {_LONG_CLIP_TABLE} {tuple(trained.shape)} but positional_embedding "
            f"{'is missing' if kept is None else tuple(kept.shape)}; Long-CLIP has both, of one shape"
        )
    return torch.cat([kept[:LONG_CLIP_KEPT], trained[LONG_CLIP_KEPT:]])


def _has_custom_text(model_cfg: Mapping[str, Any]) -> bool:
    return bool(model_cfg.get("custom_text")) or "hf_model_name" in model_cfg.get("text_cfg", {})


def _below_text(name: str) -> str:
    return f"text.{name}" if name.startswith(_TEXT_TOWER) else name
