"""CLIP-LoRA's `lora_weights.pt` (https://github.com/MaxZanella/CLIP-LoRA, loralib/utils.py)."""

from __future__ import annotations

import math
import re
from typing import Any

from tritonclip_export.adapters.lora.adapter import Adapter
from tritonclip_export.adapters.lora.formats.files import AdapterFile, Options, require_no_more
from tritonclip_export.adapters.lora.formats.layers import Layer, low_rank, make_adapter
from tritonclip_export.errors import AdapterError
from tritonclip_export.frameworks import torch

_KEY = re.compile(r"layer_(?P<index>\d+)\.(?P<module>q_proj|k_proj|v_proj|proj)\.(?P<part>w_lora_[AB])$")
_MODULES = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "proj": "out_proj"}
_TOWERS = {"text": "text_model", "vision": "vision_model"}

# Which blocks a position names, by how many there are: those of 12, and those of ViT-L/14, whose "all" was 21 blocks
# of 24 at first.
_POSITIONS: dict[str, tuple[range, ...]] = {
    "top": (range(11, 12),),
    "top1": (range(11, 12),),
    "top2": (range(10, 12),),
    "top3": (range(9, 12),),
    "bottom": (range(4),),
    "mid": (range(4, 8),),
    "up": (range(8, 12),),
    "half-up": (range(6, 12), range(12, 24)),
    "half-bottom": (range(6), range(12)),
    "all": (range(12), range(21), range(24)),
}
_ENCODERS = {"text": ("text",), "vision": ("vision",), "both": ("text", "vision")}


def read(file: AdapterFile, options: Options) -> Adapter:
    """scale = alpha / sqrt(r); layer_i counts the adapted blocks of the text tower, then those of the image tower."""
    groups: dict[tuple[int, str], dict[str, torch.Tensor]] = {}
    strange = []
    for key, tensor in file.tensors.items():
        if match := _KEY.match(key):
            groups.setdefault((int(match["index"]), match["module"]), {})[match["part"]] = tensor
        else:
            strange.append(key)
    require_no_more(strange, "CLIP-LoRA's format", file.path)
    rank, alpha = (_number(file, name) for name in ("r", "alpha"))
    options.stored_or_given(alpha, file.path)
    blocks = _blocks(file, 1 + max((index for index, _ in groups), default=-1))
    layers = {}
    for (index, module), parts in groups.items():
        name = f"{blocks[index]}.self_attn.{_MODULES[module]}"
        a, b = low_rank(name, parts, ("w_lora_A", "w_lora_B"), file)
        if a.shape[0] != rank:
            raise AdapterError(
                f"layer_{index}.{module} in {file.path} has rank {a.shape[0]}, its metadata says {rank:g}."
            )
        layers[name] = Layer(a, b, alpha / math.sqrt(rank))
    return make_adapter(file, "hf", layers, "clip-lora")


def _blocks(file: AdapterFile, count: int) -> list[str]:
    """The adapted blocks in the order of the file, by their names in `CLIPModel`."""
    encoder = _choice(file, "encoder", _ENCODERS)
    ranges = _choice(file, "position", _POSITIONS)
    # OpenAI's text towers have 12 blocks, so a position names the same ones in each.
    text = len(ranges[0]) if "text" in encoder else 0
    chosen = {"text": ranges[0]}
    if "vision" in encoder:
        fitting = [blocks for blocks in ranges if len(blocks) == count - text]
        if not fitting:
            raise _miscounted(file, count, [text + len(blocks) for blocks in ranges])
        chosen["vision"] = fitting[0]
    elif count != text:
        raise _miscounted(file, count, [text])
    return [f"{_TOWERS[tower]}.encoder.layers.{block}" for tower in encoder for block in chosen[tower]]


def _miscounted(file: AdapterFile, count: int, allowed: list[int]) -> AdapterError:
    return AdapterError(
        f"{file.path} has {count} layers, but position {file.metadata['position']!r} of encoder "
        f"{file.metadata['encoder']!r} has {' or '.join(map(str, allowed))}; the file is of another CLIP-LoRA."
    )


def _choice(file: AdapterFile, name: str, allowed: dict[str, Any]) -> Any:
    value = file.metadata.get(name)
    if value not in allowed:
        raise AdapterError(f"{name} in the metadata of {file.path} is {value!r}; allowed: {', '.join(allowed)}.")
    return allowed[value]


def _number(file: AdapterFile, name: str) -> float:
    value = file.metadata.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
        raise AdapterError(f"{name} in the metadata of {file.path} is {value!r}; it must be a number above 0.")
    return value
