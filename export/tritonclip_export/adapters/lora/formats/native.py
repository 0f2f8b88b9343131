"""OpenAI's and open_clip's names made into Hugging Face's, which keep apart what the former fuse (q, k, v)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from tritonclip_export.adapters.lora.formats.layers import Layer
from tritonclip_export.checkpoints import key_mapping
from tritonclip_export.errors import AdapterError
from tritonclip_export.frameworks import torch

# A block's attention as its tensors and as people rebuild it with Linear layers.
_ATTENTION = re.compile(
    r"(?P<block>.*transformer\.resblocks\.\d+\.attn)\.(?P<leaf>in_proj|qkv|[qkv]_proj|out_proj|proj)"
    r"\.(?P<kind>weight|bias)$"
)
_FUSED, _SINGLE = ("in_proj", "qkv"), ("q_proj", "k_proj", "v_proj")
# Tensors that a model's state dict holds and that are not weights.
_BUFFERS = re.compile(r"(.*\.)?(attn_mask|position_ids|num_batches_tracked)$")
# loraclip's and others' Linear in place of a (width, embed) parameter.
_PROJECTIONS = {
    "lora_text_projection": "text_projection",
    "text_projection": "text_projection",
    "visual.proj": "visual.proj",
}


def is_fused(module: str) -> bool:
    """Whether `module` is a query, key and value projection in one."""
    return module.rpartition(".")[2] in _FUSED


def hf_layers(layers: Mapping[str, Layer]) -> dict[str, Layer] | None:
    """Layers by Hugging Face's module names; None if one has no counterpart there.

    A fused projection becomes three layers that share A.
    """
    renamed: dict[str, Layer] = {}
    for module, layer in layers.items():
        found = _hf_modules(module)
        if not found:
            return None
        parts = [layer] if len(found) == 1 else [layer.part(index, 3) for index in range(3)]
        renamed.update(zip(found, parts, strict=True))
    return renamed


def hf_plain(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Whole tensors by Hugging Face's names; one without a counterpart keeps its own."""
    renamed: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        found, match = _hf_tensors(name)
        if match is None:
            renamed[name] = tensor
        elif len(found) == len(match.hf):
            renamed.update(zip(found, match.split(tensor), strict=True))
        else:
            renamed[found[0]] = tensor
    return renamed


def without_buffers(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`tensors` less those that are no weights."""
    return {name: tensor for name, tensor in tensors.items() if not _BUFFERS.match(name)}


def _hf_modules(module: str) -> tuple[str, ...]:
    projection = _PROJECTIONS.get(key_mapping.canonical(module))
    found, _ = _hf_tensors(projection or f"{module}.weight")
    return tuple(name.removesuffix(".weight") for name in found)


def _hf_tensors(name: str) -> tuple[tuple[str, ...], key_mapping.Correspondence | None]:
    """The tensors that `name` is there, and the correspondence that they come from."""
    attention = _ATTENTION.match(name)
    if attention is None:
        match = key_mapping.of_native(name)
        return (() if match is None else match.hf), match
    block, leaf, kind = attention["block"], attention["leaf"], attention["kind"]
    of_inputs = leaf in _FUSED or leaf in _SINGLE
    match = key_mapping.of_native(f"{block}.in_proj_{kind}" if of_inputs else f"{block}.out_proj.{kind}")
    if match is None or leaf not in _SINGLE:
        return (() if match is None else match.hf), match
    return tuple(found for found in match.hf if f".{leaf}." in found), match


def block_diagonal(a: torch.Tensor, b: torch.Tensor, groups: str) -> torch.Tensor:
    """The B [3d, r * n] of a fused projection whose groups have an A and a B of their own.

    Args:
        a: [r * n, d], the groups' A below each other.
        b: [d * n, r], the groups' B below each other.
        groups: the letters of the n groups in their order, such as "qv".
    """
    rank, width = b.shape[1], b.shape[0] // len(groups)
    whole = b.new_zeros(3 * width, a.shape[0])
    for index, letter in enumerate(groups):
        rows, columns = "qkv".index(letter) * width, index * rank
        whole[rows : rows + width, columns : columns + rank] = b[index * width : (index + 1) * width]
    return whole


def split_groups(name: str, layer: Layer, groups: str | None, path: object, format: str) -> Layer:  # noqa: A002
    """A fused projection of loralib's MergedLinear as one layer with B [3d, rank].

    Raises:
        AdapterError: fewer than three groups were trained and nobody said which.
    """
    width = layer.a.shape[1]
    count = layer.b.shape[0] // width
    if layer.rank == layer.b.shape[1] and count == 3:
        return layer
    chosen = "qkv" if count == 3 else groups
    if chosen is None or len(chosen) != count or not re.fullmatch("q?k?v?", chosen):
        allowed = {1: ("q", "k", "v"), 2: ("qk", "qv", "kv")}.get(count, ())
        raise AdapterError(
            f"{name} in {path} adapts {count} of query, key and value, and the file does not say which; name them by "
            f"the format: {', '.join(f'{format}:{letters}' for letters in allowed)}."
        )
    return replace(layer, b=block_diagonal(layer.a, layer.b, chosen))
