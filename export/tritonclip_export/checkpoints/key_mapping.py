"""The same CLIP weights under two names: open_clip's native towers and Hugging Face's `CLIPModel`.

open_clip stacks query, key and value into one `in_proj` tensor and stores both projections as
(width, embed_dim) parameters; Hugging Face keeps three Linear layers and (embed_dim, width) weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tritonclip_export.errors import CheckpointError
from tritonclip_export.frameworks import torch

Layout = Literal["same", "transposed", "stacked"]

_TOWERS = {
    "transformer.resblocks": "text_model.encoder.layers",
    "visual.transformer.resblocks": "vision_model.encoder.layers",
}
_BLOCK_MODULES = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_QKV = ("q_proj", "k_proj", "v_proj")
_SAME = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
_TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}

_HF_TOWERS = {hf: native for native, hf in _TOWERS.items()}
_HF_BLOCK_MODULES = {hf: native for native, hf in _BLOCK_MODULES.items()}
_HF_TOP = {hf: native for table in (_SAME, _TRANSPOSED) for native, hf in table.items()}
# Buffers that old transformers versions saved; they hold 0, 1, 2, ... and no weight.
_HF_BUFFERS = re.compile(r"(text|vision)_model\.embeddings\.position_ids$")
_NATIVE_BLOCK = re.compile(r"(?P<tower>(?:visual\.)?transformer\.resblocks)\.(?P<layer>\d+)\.(?P<rest>.+)$")
_HF_BLOCK = re.compile(r"(?P<tower>(?:text|vision)_model\.encoder\.layers)\.(?P<layer>\d+)\.(?P<rest>.+)$")

_SPLIT: dict[Layout, Callable[[torch.Tensor], tuple[torch.Tensor, ...]]] = {
    "same": lambda tensor: (tensor,),
    "transposed": lambda tensor: (tensor.t().contiguous(),),
    # Copies: safetensors refuses a state dict whose tensors share memory.
    "stacked": lambda tensor: tuple(part.clone() for part in tensor.chunk(3, dim=0)),
}
_JOIN: dict[Layout, Callable[[Sequence[torch.Tensor]], torch.Tensor]] = {
    "same": lambda parts: parts[0],
    "transposed": lambda parts: parts[0].t().contiguous(),
    "stacked": lambda parts: torch.cat(list(parts), dim=0),
}


@dataclass(frozen=True)
class Correspondence:
    """One open_clip tensor, the Hugging Face tensors that hold the same values, and how they differ."""

    native: str
    hf: tuple[str, ...]
    layout: Layout

    def split(self, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The open_clip tensor as Hugging Face tensors, in the order of `hf`."""
        return _SPLIT[self.layout](tensor)

    def join(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """The Hugging Face tensors, in the order of `hf`, as the open_clip tensor."""
        return _JOIN[self.layout](parts)


def canonical(name: str) -> str:
    """An open_clip name without the `text.` that `CustomTextCLIP` puts before its text tower."""
    return name.removeprefix("text.")


def of_native(name: str) -> Correspondence | None:
    """The correspondence of an open_clip name, with or without `text.`; None where CLIPModel has none."""
    name = canonical(name)
    if name in _SAME:
        return Correspondence(name, (_SAME[name],), "same")
    if name in _TRANSPOSED:
        return Correspondence(name, (_TRANSPOSED[name],), "transposed")
    block = _NATIVE_BLOCK.match(name)
    return _of_native_block(name, block) if block else None


def _of_native_block(name: str, block: re.Match[str]) -> Correspondence | None:
    prefix = f"{_TOWERS[block['tower']]}.{block['layer']}"
    rest = block["rest"]
    if rest in ("attn.in_proj_weight", "attn.in_proj_bias"):
        kind = rest.removeprefix("attn.in_proj_")
        return Correspondence(name, tuple(f"{prefix}.self_attn.{part}.{kind}" for part in _QKV), "stacked")
    module, _, kind = rest.rpartition(".")
    if module not in _BLOCK_MODULES or kind not in ("weight", "bias"):
        return None
    return Correspondence(name, (f"{prefix}.{_BLOCK_MODULES[module]}.{kind}",), "same")


def of_hf(name: str) -> Correspondence | None:
    """The correspondence that a Hugging Face name is part of, None if open_clip has no such tensor."""
    if name in _HF_TOP:
        return of_native(_HF_TOP[name])
    block = _HF_BLOCK.match(name)
    if block is None:
        return None
    module, _, kind = block["rest"].rpartition(".")
    prefix = f"{_HF_TOWERS[block['tower']]}.{block['layer']}"
    if module in {f"self_attn.{part}" for part in _QKV}:
        return of_native(f"{prefix}.attn.in_proj_{kind}")
    if module in _HF_BLOCK_MODULES:
        return of_native(f"{prefix}.{_HF_BLOCK_MODULES[module]}.{kind}")
    return None


def to_hf(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """open_clip native names (CLIP or CustomTextCLIP) to Hugging Face `CLIPModel` names.

    Dtypes are kept; the round trip through `from_hf` is exact.

    Raises:
        CheckpointError: a name has no counterpart in `CLIPModel`.
    """
    known = {name: of_native(name) for name in state_dict}
    _refuse_unknown([name for name, match in known.items() if match is None], "open_clip's native CLIP towers")
    return {
        hf: part
        for name, match in known.items()
        if match is not None
        for hf, part in zip(match.hf, match.split(state_dict[name]), strict=True)
    }


def from_hf(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Hugging Face `CLIPModel` names to open_clip native names, the inverse of `to_hf`.

    Raises:
        CheckpointError: a name has no counterpart in open_clip, or a q, k, v triple is incomplete.
    """
    weights = {name: tensor for name, tensor in state_dict.items() if not _HF_BUFFERS.match(name)}
    known = {name: of_hf(name) for name in weights}
    _refuse_unknown([name for name, match in known.items() if match is None], "Hugging Face's CLIPModel")
    matches = {match.native: match for match in known.values() if match is not None}
    return {native: match.join(_parts(weights, match)) for native, match in matches.items()}


def _parts(weights: Mapping[str, torch.Tensor], match: Correspondence) -> list[torch.Tensor]:
    missing = [name for name in match.hf if name not in weights]
    if missing:
        raise CheckpointError(
            f"{', '.join(missing)} is missing; {match.native} needs all of {', '.join(match.hf)}. "
            "Save the whole model again."
        )
    return [weights[name] for name in match.hf]


def _refuse_unknown(names: Iterable[str], family: str) -> None:
    unknown = list(names)
    if unknown:
        raise CheckpointError(
            f"{len(unknown)} weights are not part of {family} (first: {', '.join(unknown[:3])}). "
            "Only the plain CLIP towers have names in both libraries."
        )
