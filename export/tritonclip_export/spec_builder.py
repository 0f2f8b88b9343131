"""Reads the serving spec off a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tritonclip_export.checkpoints.checkpoint import Checkpoint
from tritonclip_export.errors import CheckpointError
from tritonclip_export.frameworks import open_clip, torch
from tritonclip_export.spec import ImageSpec, ScoringSpec, ServingSpec, TextSpec
from tritonclip_export.towers.towers import masked_id, text_pooling

# What only some processors of transformers say.
OPTIONAL_STEPS = ("crop_offset", "to_rgb", "patch_size", "max_num_patches")
# What the libraries call the table whose rows are the tokens.
TOKEN_TABLE = re.compile(r"(^|\.)(token_embedding|word_embeddings|embed_tokens|shared)\.weight$")


def build_spec(checkpoint: Checkpoint, state_dict: Mapping[str, torch.Tensor]) -> ServingSpec:
    """The spec of `checkpoint` with the merged weights `state_dict`; not stamped with a fingerprint.

    Raises:
        CheckpointError: its preprocessing, vocabulary and towers contradict each other, or the scale is missing.
    """
    return ServingSpec(
        name=checkpoint.name,
        architecture=checkpoint.architecture,
        embedding_dim=int(checkpoint.model_cfg["embed_dim"]),
        image=_image_spec(checkpoint),
        text=_text_spec(checkpoint, state_dict),
        scoring=_scoring_spec(state_dict),
    )


def _image_spec(checkpoint: Checkpoint) -> ImageSpec:
    config = checkpoint.preprocess_cfg
    height, width = _pair(config["size"])
    tower_size = _pair(checkpoint.model_cfg["vision_cfg"].get("image_size", 224))
    if (height, width) != tower_size:
        raise CheckpointError(
            f"the preprocessing makes images of {height} x {width}, the image tower takes "
            f"{tower_size[0]} x {tower_size[1]}; correct preprocess_cfg.size"
        )
    return ImageSpec(
        height=height,
        width=width,
        mean=_triple(config["mean"]),
        std=_triple(config["std"]),
        interpolation=config["interpolation"],
        resize_mode=config["resize_mode"],
        fill_color=_triple(config["fill_color"]),
        **{key: config[key] for key in OPTIONAL_STEPS if key in config},
    )


def _text_spec(checkpoint: Checkpoint, state_dict: Mapping[str, torch.Tensor]) -> TextSpec:
    tables = [tensor for name, tensor in state_dict.items() if TOKEN_TABLE.search(name)]
    if not tables:
        raise CheckpointError("the weights have no table of token embeddings; export a whole CLIP, both towers")
    pooling, any_length = text_pooling(checkpoint.model_cfg)
    spec = checkpoint.tokenization.spec(len(tables[0]), pooling, any_length=any_length)
    if pooling in ("argmax", "eos"):
        _require_pooling_at_the_end(checkpoint, spec)
    masked = masked_id(checkpoint.model_cfg)
    if masked is not None and masked != spec.pad_id:
        raise CheckpointError(
            f"the text tower masks the id {masked}, the tokenizer pads with {spec.pad_id}; give the tokenizer that the "
            "checkpoint was trained with: --tokenizer DIR"
        )
    return spec


def _require_pooling_at_the_end(checkpoint: Checkpoint, spec: TextSpec) -> None:
    """A tower that looks for another id than the tokenizer's last one pools the same place of every text."""
    ids = checkpoint.tokenization(["a photo"])[0]
    eos_id = open_clip.CLIPTextCfg(**checkpoint.model_cfg["text_cfg"]).eos_id
    ends = ids if spec.pooling == "argmax" else ids == eos_id
    pooled = int(ids[ends.int().argmax()])
    if pooled != spec.eot_id:
        raise CheckpointError(
            f"the text tower pools at the id {pooled}, the tokenizer ends a text with {spec.eot_id}; give the "
            "tokenizer that the checkpoint was trained with: --tokenizer DIR"
        )


def _scoring_spec(state_dict: Mapping[str, torch.Tensor]) -> ScoringSpec:
    if "logit_scale" not in state_dict:
        raise CheckpointError(
            "the weights have no logit_scale, so no score can be computed; export a whole CLIP, both towers and scale"
        )
    bias = state_dict.get("logit_bias")
    several = [name for name in ("logit_scale", "logit_bias") if name in state_dict and state_dict[name].numel() != 1]
    if several:
        raise CheckpointError(f"{' and '.join(several)} of the weights hold several values; one of each is served")
    return ScoringSpec(
        kind="softmax" if bias is None else "sigmoid",
        logit_scale=float(state_dict["logit_scale"].double().exp().reshape(())),
        logit_bias=0.0 if bias is None else float(bias.reshape(())),
    )


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _triple(value: Any) -> tuple[Any, Any, Any]:
    first, second, third = value if isinstance(value, (list, tuple)) else (value,) * 3
    return first, second, third
