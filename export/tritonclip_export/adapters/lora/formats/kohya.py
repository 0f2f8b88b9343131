"""kohya's sd-scripts, and LyCORIS in the same files: the text encoders of Stable Diffusion are CLIP's text towers.

https://github.com/kohya-ss/sd-scripts (networks/lora.py), https://github.com/KohakuBlueleaf/LyCORIS
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from tritonclip_export.adapters.lora.adapter import Adapter
from tritonclip_export.adapters.lora.formats.encoders import Parts, Place, one_of_several, sort_encoders
from tritonclip_export.adapters.lora.formats.files import AdapterFile, Options, require_no_more
from tritonclip_export.adapters.lora.formats.layers import Layer, dense, low_rank, make_adapter
from tritonclip_export.errors import AdapterError
from tritonclip_export.frameworks import torch

_KEY = re.compile(r"lora_(?P<encoder>te\d?|unet)_(?P<module>[^.]+)\.(?P<part>.+)$")
_BLOCK = re.compile(
    r"text_model_encoder_layers_(?P<layer>\d+)_(?:self_attn_(?P<attn>[qkv]|out)_proj|mlp_(?P<mlp>fc[12]))$"
)
# T5, the third text encoder of Stable Diffusion 3 and the second of FLUX.
_T5 = re.compile(r"encoder_block_")


def read(file: AdapterFile, options: Options) -> Adapter:
    """scale = alpha / rank; where alpha is missing or 0 it is the rank, as sd-scripts reads it."""
    encoders, ignored = sort_encoders(file, _place, "kohya")
    notes = [f"{ignored} tensors of other models than CLIP (U-Net, T5) were left out"] if ignored else []
    adapters = {
        name: make_adapter(file, "hf", _layers(modules, file, options), "kohya", notes=notes)
        for name, modules in encoders.items()
    }
    return one_of_several(adapters, file, options, "kohya")


def _place(key: str) -> Place:
    match = _KEY.match(key)
    if match is None:
        return None
    if match["encoder"] == "unet" or _T5.match(match["module"]):
        return "other"
    module = _module(match["module"])
    return None if module is None else (match["encoder"], module, match["part"])


def _module(name: str) -> str | None:
    """kohya writes Hugging Face's names with underscores for dots."""
    if name == "text_projection":
        return name
    match = _BLOCK.match(name)
    if match is None:
        return None
    leaf = f"self_attn.{match['attn']}_proj" if match["attn"] else f"mlp.{match['mlp']}"
    return f"text_model.encoder.layers.{match['layer']}.{leaf}"


def _layers(modules: Mapping[str, Parts], file: AdapterFile, options: Options) -> dict[str, Layer]:
    return {name: _layer(name, dict(parts), file, options) for name, parts in modules.items()}


def _layer(name: str, parts: Parts, file: AdapterFile, options: Options) -> Layer:
    stored = parts.pop("alpha", None)
    alpha = options.stored_or_given(None if stored is None else float(stored), file.path)
    magnitude = _magnitude(parts.pop("dora_scale", None))
    kinds = {"lora_down.weight": _lora, "hada_w1_a": _hada, "lokr_w1": _lokr, "lokr_w1_a": _lokr}
    make = next((make for key, make in kinds.items() if key in parts), _lora)
    return make(name, parts, alpha, magnitude, file)


def _lora(name: str, parts: Parts, alpha: float | None, magnitude: torch.Tensor | None, file: AdapterFile) -> Layer:
    keys = ("lora_down.weight", "lora_up.weight")
    if not set(parts) & set(keys):
        require_no_more([f"{name}.{part}" for part in parts], "a LoRA, LoHa or LoKr layer", file.path)
    a, b = low_rank(name, parts, keys, file)
    _require_only(name, parts, keys, file)
    # Some tools store a Linear layer's matrices as 1x1 convolutions.
    a, b = a.flatten(1), b.flatten(1)
    return Layer(a, b, _scale(alpha, a.shape[0]), magnitude)


def _hada(name: str, parts: Parts, alpha: float | None, magnitude: torch.Tensor | None, file: AdapterFile) -> Layer:
    """LoHa (https://arxiv.org/abs/2108.06098): (W1a @ W1b) * (W2a @ W2b), elementwise."""
    keys = ("hada_w1_b", "hada_w1_a", "hada_w2_b", "hada_w2_a")
    _require_only(name, parts, keys, file)
    (b1, a1), (b2, a2) = (low_rank(name, parts, pair, file) for pair in (keys[:2], keys[2:]))
    return dense((a1 @ b1) * (a2 @ b2) * _scale(alpha, b1.shape[0]), magnitude)


def _lokr(name: str, parts: Parts, alpha: float | None, magnitude: torch.Tensor | None, file: AdapterFile) -> Layer:
    """LoKr (https://arxiv.org/abs/2309.14859): kron(W1, W2), each whole or a product; two whole ones have scale 1."""
    keys = tuple(f"lokr_w{index}{end}" for index in (1, 2) for end in ("", "_a", "_b"))
    _require_only(name, parts, keys, file)
    factors, rank = [], None
    for whole, a, b in (keys[:3], keys[3:]):
        if whole in parts:
            factors.append(parts[whole].float())
        else:
            right, left = low_rank(name, parts, (b, a), file)
            factors.append(left @ right)
            rank = right.shape[0]
    scale = 1.0 if rank is None else _scale(alpha, rank)
    return dense(torch.kron(factors[0], factors[1]) * scale, magnitude)


def _scale(alpha: float | None, rank: int) -> float:
    return alpha / rank if alpha else 1.0


def _magnitude(scale: torch.Tensor | None) -> torch.Tensor | None:
    """[out, 1] to [out], PEFT's; [1, in] stays, LyCORIS' older norm over the outputs."""
    if scale is None:
        return None
    scale = scale.float()
    return scale if scale.ndim > 1 and scale.shape[0] == 1 else scale.flatten()


def _require_only(name: str, parts: Parts, keys: tuple[str, ...], file: AdapterFile) -> None:
    strange = [part for part in parts if part not in keys]
    if strange:
        raise AdapterError(
            f"{name} in {file.path} has {', '.join(strange)} beside {keys[0]}; that variant of LyCORIS cannot be "
            "merged by this version. Merge it with the tool that trained it."
        )
