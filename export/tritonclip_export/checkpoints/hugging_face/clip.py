"""Hugging Face's `CLIPModel` for an open_clip model config, and the config back again.

What one library can express and the other cannot is refused by name, never dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NoReturn

from tritonclip_export.checkpoints.key_mapping import to_hf
from tritonclip_export.errors import CheckpointError
from tritonclip_export.frameworks import init_empty_weights, open_clip, torch

if TYPE_CHECKING:
    from transformers import CLIPConfig, CLIPModel

# With this id transformers pools at the highest id, as open_clip does; any other is looked for itself.
ARGMAX_EOS_ID = 2
LAYER_NORM_EPS = 1e-5
_ACTIVATIONS = {"gelu": False, "quick_gelu": True}

# Fields that CLIPModel has a place for, or that do not change what the towers compute.
_SHARED_FIELDS = frozenset({"layers", "width", "mlp_ratio", "output_tokens"})
_VISION_FIELDS = _SHARED_FIELDS | {"head_width", "patch_size", "image_size", "patch_dropout"}
_TEXT_FIELDS = _SHARED_FIELDS | {
    *("context_length", "vocab_size", "heads", "pad_id", "eos_id", "pool_type"),
    *("hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs"),
}


def hf_config(model_cfg: Mapping[str, Any]) -> CLIPConfig:
    """Hugging Face's config of an open_clip model config (embed_dim, vision_cfg, text_cfg, quick_gelu).

    Raises:
        CheckpointError: a setting that `CLIPModel` cannot express.
    """
    from transformers import CLIPConfig

    vision = _complete(open_clip.CLIPVisionCfg, model_cfg["vision_cfg"], _VISION_FIELDS, "vision_cfg")
    text = _complete(open_clip.CLIPTextCfg, model_cfg["text_cfg"], _TEXT_FIELDS, "text_cfg")
    shared = {
        "hidden_act": "quick_gelu" if model_cfg.get("quick_gelu") else "gelu",
        "projection_dim": model_cfg["embed_dim"],
        "layer_norm_eps": LAYER_NORM_EPS,
    }
    return CLIPConfig(
        text_config={**shared, **_hf_text(text)},
        vision_config={**shared, **_hf_vision(vision)},
        projection_dim=model_cfg["embed_dim"],
    )


def build_hf_clip(model_cfg: Mapping[str, Any], state_dict: Mapping[str, torch.Tensor]) -> CLIPModel:
    """`CLIPModel` in float32 and eval mode with an open_clip state dict (native names, any float dtype).

    Raises:
        CheckpointError: the config or a weight has no place in `CLIPModel`, or a weight is missing.
    """
    from transformers import CLIPModel

    with init_empty_weights(include_buffers=False):
        model: CLIPModel = CLIPModel(hf_config(model_cfg)).eval()
    weights = {name: tensor.float() for name, tensor in to_hf(state_dict).items()}
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"the weights do not fit the model config: {error}") from error
    return model


def open_clip_model_cfg(config: CLIPConfig) -> dict[str, Any]:
    """open_clip's model config of a Hugging Face `CLIPConfig`.

    Raises:
        CheckpointError: a setting that open_clip's native towers cannot express.
    """
    vision: Any = config.vision_config
    text: Any = config.text_config
    for tower, part in (("vision_config", vision), ("text_config", text)):
        _check_hf_tower(tower, part)
    if vision.hidden_act != text.hidden_act:
        _refuse("hidden_act", f"{vision.hidden_act} and {text.hidden_act}", "the same in both towers")
    return {
        "embed_dim": config.projection_dim,
        "quick_gelu": _ACTIVATIONS[vision.hidden_act],
        "vision_cfg": {
            "image_size": _side(vision.image_size, "vision_config.image_size"),
            "layers": vision.num_hidden_layers,
            "width": vision.hidden_size,
            "head_width": vision.hidden_size // vision.num_attention_heads,
            "patch_size": _side(vision.patch_size, "vision_config.patch_size"),
            "mlp_ratio": _mlp_ratio(vision.hidden_size, vision.intermediate_size),
        },
        "text_cfg": {
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "width": text.hidden_size,
            "heads": text.num_attention_heads,
            "layers": text.num_hidden_layers,
            "mlp_ratio": _mlp_ratio(text.hidden_size, text.intermediate_size),
            **_open_clip_pooling(text.eos_token_id, text.vocab_size),
        },
    }


def _complete(
    kind: Callable[..., Any], given: Mapping[str, Any], expressible: frozenset[str], part: str
) -> dict[str, Any]:
    """The config with open_clip's defaults filled in; refuses what is set and not expressible."""
    try:
        full = asdict(kind(**given))
    except TypeError as error:
        raise CheckpointError(f"{part} is not a config of this open_clip ({error}).") from error
    plain = asdict(kind())
    for name, value in full.items():
        if name not in expressible and (value or None) != (plain[name] or None):
            _refuse(f"{part}.{name}", value, f"{plain[name]!r} for Hugging Face's CLIPModel")
    return full


def _hf_vision(vision: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(vision["layers"], int):
        _refuse("vision_cfg.layers", vision["layers"], "one number; CLIPModel has no ResNet tower")
    return {
        "hidden_size": vision["width"],
        "intermediate_size": int(vision["width"] * vision["mlp_ratio"]),
        "num_hidden_layers": vision["layers"],
        "num_attention_heads": vision["width"] // vision["head_width"],
        "image_size": _side(vision["image_size"], "vision_cfg.image_size"),
        "patch_size": _side(vision["patch_size"], "vision_cfg.patch_size"),
    }


def _hf_text(text: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "hidden_size": text["width"],
        "intermediate_size": int(text["width"] * text["mlp_ratio"]),
        "num_hidden_layers": text["layers"],
        "num_attention_heads": text["heads"],
        "max_position_embeddings": text["context_length"],
        "vocab_size": text["vocab_size"],
        "eos_token_id": _hf_eos_id(text),
        # Neither id changes what the tower computes; the defaults may lie outside a small vocabulary.
        "bos_token_id": None,
        "pad_token_id": None,
    }


def _hf_eos_id(text: Mapping[str, Any]) -> int:
    if text["pool_type"] == "argmax":
        return ARGMAX_EOS_ID
    if text["pool_type"] != "eos" or text["eos_id"] == ARGMAX_EOS_ID:
        _refuse("text_cfg.pool_type", text["pool_type"], "'argmax', or 'eos' with an eos_id other than 2")
    return int(text["eos_id"])


def _open_clip_pooling(eos_id: Any, vocab_size: int) -> dict[str, Any]:
    if not isinstance(eos_id, int):
        _refuse("text_config.eos_token_id", eos_id, "one id")
    # The highest id of the vocabulary is found by argmax where it first occurs.
    if eos_id in (ARGMAX_EOS_ID, vocab_size - 1):
        return {"pool_type": "argmax"}
    return {"pool_type": "eos", "eos_id": eos_id}


def _check_hf_tower(tower: str, config: Any) -> None:
    if config.hidden_act not in _ACTIVATIONS:
        _refuse(f"{tower}.hidden_act", config.hidden_act, " or ".join(_ACTIVATIONS))
    if not math.isclose(config.layer_norm_eps, LAYER_NORM_EPS):
        _refuse(f"{tower}.layer_norm_eps", config.layer_norm_eps, str(LAYER_NORM_EPS))
    if config.hidden_size % config.num_attention_heads:
        _refuse(f"{tower}.num_attention_heads", config.num_attention_heads, f"a divisor of {config.hidden_size}")
    if getattr(config, "num_channels", 3) != 3:
        _refuse(f"{tower}.num_channels", config.num_channels, "3")


def _mlp_ratio(width: int, intermediate: int) -> float:
    """The ratio from which open_clip's `int(width * ratio)` gives `intermediate` again."""
    ratio = intermediate / width
    # A quotient may fall one ulp short of the whole number that open_clip rounds down to.
    return ratio if int(width * ratio) == intermediate else math.nextafter(ratio, math.inf)


def _side(size: Any, name: str) -> int:
    """The side of a square given as one number or as two equal ones."""
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        _refuse(name, size, "a square")
    return int(sides.pop())


def _refuse(name: str, given: Any, allowed: str) -> NoReturn:
    raise CheckpointError(
        f"{name} is {given!r}; allowed: {allowed}. This version knows the plain CLIP towers that "
        "open_clip and Hugging Face share."
    )
