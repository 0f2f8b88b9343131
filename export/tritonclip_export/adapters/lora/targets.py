"""Where PEFT applies the delta of an adapted module: which tensor, how often, or nowhere at all."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from tritonclip_export.adapters.lora.naming.keys import LowRank
from tritonclip_export.adapters.lora.weights import BaseWeights

Kind = Literal["linear", "conv", "embedding"]

# From this PEFT release on, how often its forward adds the delta of an nn.MultiheadAttention's out_proj:
# `merge()` writes it into the weight and then lets the inner layer add it again, in training as well
# (huggingface/peft pull request 3774, not released). Append a line here when a release changes it.
OUT_PROJ_REPEATS: tuple[tuple[tuple[int, ...], int], ...] = (((0, 15, 0), 2),)
NEWEST_KNOWN_PEFT = (0, 21, 2)

WRAPPED_OUT_PROJ = ".base_layer.out_proj"
# Linear layers that people put in the place of an nn.MultiheadAttention's fused and output projection.
_REBUILT_ATTENTION = {"qkv": "in_proj_", "proj": "out_proj."}
# open_clip's ResNet hands these four weights to F.multi_head_attention_forward; the layers never run.
_ATTENTION_POOL = re.compile(r"(.+\.)?attnpool\.[qkvc]_proj$")


@dataclass(frozen=True)
class Target:
    """A tensor that a low-rank delta is added to, by its name in the adapter's own names."""

    weight: str
    bias: str | None
    kind: Kind
    repeats: int = 1


@dataclass(frozen=True)
class Dead:
    """An adapted module that PEFT's forward never executes, and why."""

    reason: str


def pattern_name(trained: str) -> str:
    """The name that rank and alpha patterns are matched with; PEFT gives out_proj those of its attention."""
    return trained.removesuffix(WRAPPED_OUT_PROJ)


def locate(module: LowRank, prefix: str, base: BaseWeights, peft_version: str | None) -> Target | Dead | None:
    """Where the delta of `module` goes; None if the model has no such module.

    Args:
        prefix: what the adapter's names lack in a whole CLIP.
        peft_version: the version that trained the adapter, None where it is not recorded.
    """
    name = prefix + module.module
    parent, _, leaf = name.rpartition(".")
    attention = base.get(f"{parent}.in_proj_weight") is not None
    if attention and leaf in _REBUILT_ATTENTION:
        own = f"{parent}.{_REBUILT_ATTENTION[leaf]}"
        return Target(f"{own}weight", f"{own}bias", "linear")
    in_attention = attention and leaf == "out_proj"
    if in_attention and not module.trained.endswith(WRAPPED_OUT_PROJ):
        return Dead("nn.MultiheadAttention reads out_proj's weight and never calls the layer")
    if leaf == "qkv" and base.get(f"{parent}.q_bias") is not None:
        return Dead("timm's EVA keeps the biases of q and v apart, reads qkv's weight and never calls the layer")
    if _ATTENTION_POOL.match(name):
        return Dead("the attention pool reads the layer's weight and never calls it")
    if leaf == "position_embedding" and _is_naflex(parent, base):
        return Dead("SigLIP 2's NaFlex tower resizes the layer's weight and never calls it")
    if base.get(f"{name}.in_proj_weight") is not None:
        return Target(f"{name}.in_proj_weight", None, "linear")
    weight = base.get(f"{name}.weight")
    if weight is None:
        return None
    repeats = out_proj_repeats(peft_version) if in_attention else 1
    bias = f"{name}.bias" if base.get(f"{name}.bias") is not None else None
    return Target(f"{name}.weight", bias, _kind(module, weight.ndim), repeats)


def _is_naflex(embeddings: str, base: BaseWeights) -> bool:
    """Whether these embed patches that are rows; all other towers have a convolution, texts have no patches."""
    patches = base.get(f"{embeddings}.patch_embedding.weight")
    return patches is not None and patches.ndim == 2


def out_proj_repeats(peft_version: str | None) -> int:
    """How often the PEFT release that trained an adapter added the delta of a wrapped out_proj."""
    version = parse_version(peft_version)
    # Releases before the field existed are older than any that changed the rule.
    known = [repeats for since, repeats in OUT_PROJ_REPEATS if version is None or version >= since]
    return known[0] if version is None else (known or [OUT_PROJ_REPEATS[0][1]])[-1]


def parse_version(version: str | None) -> tuple[int, ...] | None:
    """The numbers of a release such as "0.21.2" or "0.18.0.dev0@abc", None if there are none."""
    match = re.match(r"\d+(\.\d+)*", version or "")
    return tuple(int(number) for number in match.group().split(".")) if match else None


def _kind(module: LowRank, ndim: int) -> Kind:
    if module.embedding:
        return "embedding"
    return "conv" if ndim == 4 else "linear"
