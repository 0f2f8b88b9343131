"""Reads the serving spec off a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tritonclip_export.checkpoint import Checkpoint
from tritonclip_export.errors import CheckpointError
from tritonclip_export.frameworks import open_clip, torch
from tritonclip_export.spec import ImageSpec, ScoringSpec, ServingSpec, TextSpec, text_buckets

PAD_ID = 0


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
        text=_text_spec(checkpoint.model_cfg),
        scoring=_scoring_spec(state_dict),
    )


def _image_spec(checkpoint: Checkpoint) -> ImageSpec:
    config = checkpoint.preprocess_cfg
    height, width = _pair(config["size"])
    tower_size = _pair(checkpoint.model_cfg["vision_cfg"].get("image_size", 224))
    if (height, width) != tower_size:
        raise CheckpointError(
            f"the preprocessing makes pictures of {height} x {width}, the image tower takes "
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
    )


def _text_spec(model_cfg: Mapping[str, Any]) -> TextSpec:
    config = open_clip.CLIPTextCfg(**model_cfg["text_cfg"])
    kwargs = config.tokenizer_kwargs or {}
    unknown = sorted(set(kwargs) - {"clean"})
    if unknown:
        raise CheckpointError(f"the tokenizer has options {', '.join(unknown)}; this version serves: clean")
    tokenizer = open_clip.SimpleTokenizer(context_length=config.context_length, **kwargs)
    if config.vocab_size != tokenizer.vocab_size:
        raise CheckpointError(
            f"the text tower knows {config.vocab_size} tokens, CLIP's byte-pair vocabulary has "
            f"{tokenizer.vocab_size}; this version serves checkpoints that use that vocabulary"
        )
    return TextSpec(
        context_length=config.context_length,
        vocab_size=config.vocab_size,
        # check_supported let only causal towers with end-of-text pooling through.
        buckets=text_buckets(config.context_length, any_length=True),
        pad_id=PAD_ID,
        sot_id=tokenizer.sot_token_id,
        eot_id=tokenizer.eot_token_id,
        clean=kwargs.get("clean", "lower"),
        pooling=config.pool_type,
    )


def _scoring_spec(state_dict: Mapping[str, torch.Tensor]) -> ScoringSpec:
    if "logit_scale" not in state_dict:
        raise CheckpointError(
            "the weights have no logit_scale, so no score can be computed; export a whole CLIP, both towers and scale"
        )
    bias = state_dict.get("logit_bias")
    return ScoringSpec(
        kind="softmax" if bias is None else "sigmoid",
        logit_scale=float(state_dict["logit_scale"].double().exp()),
        logit_bias=0.0 if bias is None else float(bias),
    )


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _triple(value: Any) -> tuple[Any, Any, Any]:
    first, second, third = value if isinstance(value, (list, tuple)) else (value,) * 3
    return first, second, third
