"""Lets PEFT run adapters unmerged on a CLIP, each on the part of the model that it was trained on."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tritonclip_export.errors import AdapterError
from tritonclip_export.frameworks import torch
from tritonclip_export.lora.keys import sort_parts
from tritonclip_export.lora.prefix import TEXT, VISION, VISUAL, find_prefix
from tritonclip_export.lora.read import Adapter
from tritonclip_export.lora.weights import BaseWeights

if TYPE_CHECKING:
    from peft import PeftModel

Weighted = tuple[Adapter, float]

_BOTH = frozenset({"text", "image"})
_TOWER_OF_PREFIX = {TEXT: "text", VISION: "image", VISUAL: "image"}
# A class that was trained on one tower, the tower, and what of a whole CLIP has its modules' names.
_STAND_INS: dict[str, tuple[str, tuple[str, ...]]] = {
    "CLIPTextModel": ("text", ("text_model",)),
    "CLIPTextModelWithProjection": ("text", ("text_model", "text_projection")),
    "CLIPVisionModel": ("image", ("vision_model",)),
    "CLIPVisionModelWithProjection": ("image", ("vision_model", "visual_projection")),
    "TextTransformer": ("text", ("transformer", "token_embedding", "ln_final")),
}
_MISSING_KEYS = "Found missing adapter keys"


class ReferenceUnavailable(AdapterError):  # noqa: N818 - a state of PEFT, not a fault of the user
    """The adapters can be merged, but PEFT cannot run this combination unmerged to compare with."""


@dataclass(frozen=True)
class Host:
    """The part of a CLIP that has the module names of the model that an adapter was trained on."""

    name: str
    towers: frozenset[str]
    module: torch.nn.Module

    def put_back(self, model: torch.nn.Module) -> None:
        """Hand what PEFT replaced directly below a stand-in to the model that shares its modules."""
        if isinstance(self.module, torch.nn.ModuleDict):
            for name, module in self.module.items():
                setattr(model, name, module)


def attach_unmerged(model: torch.nn.Module, adapters: Sequence[Weighted], base: BaseWeights) -> None:
    """Let PEFT wrap `model`'s modules in place, with every adapter active at its weight.

    Args:
        model: a CLIP whose module names the adapters speak.
        base: its weights by the adapters' names.

    Raises:
        ReferenceUnavailable: PEFT cannot run this combination unmerged.
    """
    _require_expressible(adapters)
    groups: dict[str, list[Weighted]] = {}
    hosts: dict[str, Host] = {}
    for adapter, weight in adapters:
        host = _host(model, adapter, base)
        hosts.setdefault(host.name, host)
        groups.setdefault(host.name, []).append((adapter, weight))
    _require_disjoint(hosts.values())
    for name, group in groups.items():
        _wrap(hosts[name].module, group)
        hosts[name].put_back(model)
    model.requires_grad_(False).eval()


def _require_expressible(adapters: Sequence[Weighted]) -> None:
    if len(adapters) == 1 and adapters[0][1] == 1:
        return
    for adapter, _ in adapters:
        parts = sort_parts(adapter.tensors)
        if adapter.settings.use_dora or parts.token_rows or parts.replacements:
            raise ReferenceUnavailable(
                f"{adapter.path} has DoRA, or replaces whole tensors (bias, modules_to_save, token rows); PEFT "
                "runs such an adapter unmerged only alone and with weight 1. The merge itself is possible."
            )


def _host(model: torch.nn.Module, adapter: Adapter, base: BaseWeights) -> Host:
    prefix = find_prefix(adapter, sort_parts(adapter.tensors), base)
    if prefix:
        return Host(prefix, frozenset({_TOWER_OF_PREFIX[prefix]}), model.get_submodule(prefix.rstrip(".")))
    trained_class = adapter.settings.base_model_class or ""
    if trained_class not in _STAND_INS:
        return Host("", _BOTH, model)
    tower, children = _STAND_INS[trained_class]
    shared = torch.nn.ModuleDict({name: model.get_submodule(name) for name in children})
    return Host(trained_class, frozenset({tower}), shared)


def _require_disjoint(hosts: Iterable[Host]) -> None:
    taken: set[str] = set()
    for host in hosts:
        if taken & host.towers:
            raise ReferenceUnavailable(
                "One adapter was trained on a whole CLIP and another on a tower of it, or on two classes of one "
                "tower, and PEFT cannot nest them. The merge itself is possible."
            )
        taken |= host.towers


def _wrap(module: torch.nn.Module, group: Sequence[Weighted]) -> None:
    from peft.tuners.lora import LoraLayer

    names = [f"adapter_{index}" for index in range(len(group))]
    try:
        peft_model = _load(module, [adapter for adapter, _ in group], names)
        tuner: Any = peft_model.base_model
        tuner.set_adapter(names)
    except (AttributeError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise ReferenceUnavailable(f"PEFT cannot run {group[0][0].path} unmerged: {error}") from error
    for layer in module.modules():
        if isinstance(layer, LoraLayer):
            for name, (_, weight) in zip(names, group, strict=True):
                layer.set_scale(name, weight)


def _load(module: torch.nn.Module, adapters: Sequence[Adapter], names: Sequence[str]) -> PeftModel:
    from peft import LoraConfig, PeftModel

    config = LoraConfig.from_pretrained(str(adapters[0].path))
    # A task would select a wrapper that expects a language model's methods.
    config.task_type = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        peft_model = PeftModel.from_pretrained(
            module, adapters[0].path, adapter_name=names[0], config=config, torch_device="cpu"
        )
        missing = [str(entry.message) for entry in caught if _MISSING_KEYS in str(entry.message)]
        for adapter, name in zip(adapters[1:], names[1:], strict=True):
            missing += peft_model.load_adapter(adapter.path, name, torch_device="cpu").missing_keys
    if missing:
        raise ReferenceUnavailable(f"PEFT misses tensors in {adapters[0].path}: {missing[0][:300]}")
    return peft_model
