"""What of an adapter only the model that it meets can tell."""

from __future__ import annotations

from dataclasses import replace

from tritonclip_export.adapters.lora.adapter import Adapter
from tritonclip_export.adapters.lora.fitting.folding import weight_delta
from tritonclip_export.adapters.lora.fitting.prefix import find_prefix, fits
from tritonclip_export.adapters.lora.fitting.shapes import misfit
from tritonclip_export.adapters.lora.naming.keys import LowRank, Parts, sort_parts, unwrapped
from tritonclip_export.adapters.lora.targets import Target, locate, pattern_name
from tritonclip_export.adapters.lora.weights import BaseWeights
from tritonclip_export.errors import AdapterError
from tritonclip_export.frameworks import torch

# How much of an adapter's difference a saved weight may miss, by rounding to float16 or bfloat16.
_ROUNDING = 0.3


def fit_adapter(adapter: Adapter, base: BaseWeights) -> Adapter:
    """`adapter` as it is to be merged into `base`.

    Of several adapters in a file the one that fits is taken; base weights that came with the file are left out, and
    so are low-rank parts that the file's weights hold already (loralib merges them in `.eval()` and saves both).

    Raises:
        AdapterError: several fit, or none; or the file's weights are neither the model's nor merged ones.
    """
    if adapter.choices:
        adapter = _the_one_that_fits(adapter, base)
    return _without_base(adapter, base) if adapter.whole_model else adapter


def _the_one_that_fits(adapter: Adapter, base: BaseWeights) -> Adapter:
    fitting = {name: each for name, each in adapter.choices if _fits(each, base)}
    if len(fitting) == 1:
        return next(iter(fitting.values()))
    names = ", ".join(name for name, _ in adapter.choices)
    if fitting:
        raise AdapterError(f"{adapter.path} holds several LoRAs that fit this model; name one by the format: {names}.")
    raise AdapterError(
        f"{adapter.path} holds several LoRAs ({names}), and none fits this model; give the checkpoint that one of them "
        "was trained on."
    )


def _fits(adapter: Adapter, base: BaseWeights) -> bool:
    parts = sort_parts(adapter.tensors)
    return fits(adapter, parts, find_prefix(adapter, parts, base), base)


def _without_base(adapter: Adapter, base: BaseWeights) -> Adapter:
    parts = sort_parts(adapter.tensors)
    prefix = find_prefix(adapter, parts, base)
    merged = {module.trained for module in parts.low_rank if _is_merged(adapter, module, parts, prefix, base)}
    dropped = {key for key in adapter.tensors if _says_nothing_new(key, adapter, parts, prefix, base, merged)}
    tensors = {key: tensor for key, tensor in adapter.tensors.items() if key not in dropped}
    note = f"{len(merged)} modules were saved with their LoRA merged already, and taken as they are"
    return replace(adapter, tensors=tensors, notes=(*adapter.notes, note) if merged else adapter.notes)


def _is_merged(adapter: Adapter, module: LowRank, parts: Parts, prefix: str, base: BaseWeights) -> bool:
    """Whether the file's weight of `module` holds the module's difference already."""
    target = locate(module, prefix, base, adapter.settings.peft_version)
    if not isinstance(target, Target):
        return False
    saved, weight = parts.replacements.get(target.weight.removeprefix(prefix)), base.get(target.weight)
    if saved is None or weight is None or saved.shape != weight.shape:
        return False
    name = pattern_name(module.trained)
    if misfit(module, target, weight, adapter.settings.rank(name)):
        return False
    delta = weight_delta(module, weight, target.kind, adapter.settings.scale(name), target.repeats)
    size, distance = delta.norm(), (saved - weight).norm()
    if distance <= _ROUNDING * size or size == 0:
        return False
    if (saved - weight - delta).norm() <= _ROUNDING * size:
        return True
    raise AdapterError(
        f"{target.weight} in {adapter.path} is neither this model's nor this model's with the LoRA merged; give the "
        "checkpoint that the adapter was trained on, and the alpha of its training."
    )


def _says_nothing_new(
    key: str, adapter: Adapter, parts: Parts, prefix: str, base: BaseWeights, merged: set[str]
) -> bool:
    name = unwrapped(key)
    if name not in parts.replacements:
        return any(key.startswith(f"{module}.lora_") for module in merged)
    weight = base.get(prefix + name)
    tensor = adapter.tensors[key]
    return weight is not None and weight.shape == tensor.shape and torch.equal(weight.to(tensor.dtype), tensor)
