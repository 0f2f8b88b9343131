"""The package loraclip (https://pypi.org/project/loraclip): OpenAI's CLIP rebuilt with LoRA layers, its state dict."""

from __future__ import annotations

from dataclasses import replace

from tritonclip_export.adapters.lora.adapter import Adapter
from tritonclip_export.adapters.lora.formats.files import AdapterFile, Options
from tritonclip_export.adapters.lora.formats.layers import Layer
from tritonclip_export.adapters.lora.formats.loralib import linear, native_adapter, split
from tritonclip_export.errors import AdapterError
from tritonclip_export.frameworks import torch

_FUSED = ("in_proj_weight_lora_A", "in_proj_weight_lora_B")
_PROJECTION = "lora_text_projection"


def read(file: AdapterFile, options: Options) -> Adapter:
    """scale = alpha / r; alpha is 1 unless it is given, as the package never passes another."""
    tensors = {_with_dots(key): tensor for key, tensor in file.tensors.items()}
    modules, plain = split(replace(file, tensors=tensors))
    layers = {name: linear(name, parts, options, file) for name, parts in modules.items()}
    projection = _projection(plain.pop(f"{_PROJECTION}.weight", None), layers.pop(_PROJECTION, None), file)
    if projection is not None:
        plain["text_projection"] = projection
    adapter = native_adapter(layers, plain, file, "loraclip")
    if options.alpha is not None:
        return adapter
    return replace(adapter, notes=(*adapter.notes, "the file stores no alpha; 1 was taken, which loraclip always uses"))


def _with_dots(key: str) -> str:
    """`attn.in_proj_weight_lora_A` is a parameter of the attention, not of a module in it."""
    parent, _, leaf = key.rpartition(".")
    return f"{parent}.in_proj.{leaf[-6:]}" if leaf in _FUSED else key


def _projection(weight: torch.Tensor | None, layer: Layer | None, file: AdapterFile) -> torch.Tensor | None:
    """The text projection [width, embed] whole: loraclip's own Linear starts from random values, not from CLIP's."""
    if weight is None and layer is not None:
        raise AdapterError(
            f"{file.path} has no {_PROJECTION}.weight; loraclip draws it at random when it loads a CLIP, so nothing "
            "else can stand for it. Save the whole state dict."
        )
    if weight is None:
        return None
    whole = weight.float() if layer is None else weight.float() + layer.scale * layer.b @ layer.a
    return whole.t().contiguous()
