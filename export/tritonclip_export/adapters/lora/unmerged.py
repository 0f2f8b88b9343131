"""Lets PEFT run adapters unmerged on a CLIP, each on the part of the model that it was trained on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from tritonclip_export.adapters.lora.adapter import Adapter
from tritonclip_export.adapters.lora.fitting.fit import fit_adapter
from tritonclip_export.adapters.lora.fitting.prefix import TEXT, VISION, VISUAL, find_prefix
from tritonclip_export.adapters.lora.naming.keys import Parts, sort_parts
from tritonclip_export.adapters.lora.peft.load import (
    ADAPTER_NAME,
    PeftAdapter,
    ReferenceUnavailable,
    add_with_peft,
    load_with_peft,
    raised_by_peft,
)
from tritonclip_export.adapters.lora.peft.method import MethodAdapter
from tritonclip_export.adapters.lora.task_vector import TaskVector
from tritonclip_export.adapters.lora.weights import BaseWeights
from tritonclip_export.frameworks import torch

__all__ = ["AnyAdapter", "Host", "ReferenceUnavailable", "attach_unmerged", "find_host"]

AnyAdapter = PeftAdapter | TaskVector
Weighted = tuple[PeftAdapter, float]

_BOTH = frozenset({"text", "image"})
_TOWER_OF_PREFIX = {TEXT: "text", VISION: "image", VISUAL: "image"}
# A class that was trained on one tower, the tower, and what of a whole CLIP has its modules' names.
_STAND_INS: dict[str, tuple[str, tuple[str, ...]]] = {
    "CLIPTextModel": ("text", ("text_model",)),
    "CLIPTextModelWithProjection": ("text", ("text_model", "text_projection")),
    "CLIPVisionModel": ("image", ("vision_model",)),
    "CLIPVisionModelWithProjection": ("image", ("vision_model", "visual_projection")),
    "SiglipTextModel": ("text", ("text_model",)),
    "SiglipVisionModel": ("image", ("vision_model",)),
    "Siglip2TextModel": ("text", ("text_model",)),
    "Siglip2VisionModel": ("image", ("vision_model",)),
    "ChineseCLIPTextModel": ("text", ("text_model",)),
    "ChineseCLIPVisionModel": ("image", ("vision_model",)),
    "TextTransformer": ("text", ("transformer", "token_embedding", "ln_final")),
}


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


def attach_unmerged(model: torch.nn.Module, adapters: Sequence[tuple[AnyAdapter, float]], base: BaseWeights) -> None:
    """Let PEFT wrap `model`'s modules in place, with every adapter active at its weight.

    Args:
        model: a CLIP whose module names the adapters speak.
        base: its weights by the adapters' names.

    Raises:
        ReferenceUnavailable: PEFT cannot run this combination unmerged.
        AdapterError: an adapter does not fit.
    """
    groups: dict[str, list[Weighted]] = {}
    hosts: dict[str, Host] = {}
    for adapter, weight in _expressible(adapters, base):
        host = find_host(model, adapter, base)
        hosts.setdefault(host.name, host)
        groups.setdefault(host.name, []).append((adapter, weight))
    _require_disjoint(hosts.values())
    for name, group in groups.items():
        _wrap(hosts[name].module, group)
        hosts[name].put_back(model)
    model.requires_grad_(False).eval()


def _expressible(adapters: Sequence[tuple[AnyAdapter, float]], base: BaseWeights) -> list[Weighted]:
    of_peft = [
        (fit_adapter(adapter, base) if isinstance(adapter, Adapter) else adapter, weight)
        for adapter, weight in adapters
        if not isinstance(adapter, TaskVector)
    ]
    if len(of_peft) < len(adapters):
        raise ReferenceUnavailable(
            "A fine-tuned checkpoint minus its base is a change of the weights themselves; there is no adapter to run "
            "unmerged. The merge itself is possible."
        )
    if len(adapters) == 1 and adapters[0][1] == 1:
        return of_peft
    for adapter, _ in of_peft:
        if isinstance(adapter, MethodAdapter) or _replaces(adapter):
            raise ReferenceUnavailable(
                f"{adapter.path} is no plain LoRA: it has another method or DoRA, or replaces whole tensors (bias, "
                "modules_to_save, token rows); PEFT runs such an adapter unmerged only alone and with weight 1. The "
                "merge itself is possible."
            )
    return of_peft


def _replaces(adapter: Adapter) -> bool:
    parts = sort_parts(adapter.tensors)
    return bool(adapter.settings.use_dora or parts.token_rows or parts.replacements)


def find_host(model: torch.nn.Module, adapter: PeftAdapter, base: BaseWeights) -> Host:
    """The part of `model` that has the module names of the model that `adapter` was trained on."""
    # Of a method's tensors only the names are known; with the trained class they tell the tower.
    parts = Parts() if isinstance(adapter, MethodAdapter) else sort_parts(adapter.tensors)
    prefix = find_prefix(cast(Adapter, adapter), parts, base)
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

    first, *others = (adapter for adapter, _ in group)
    names = [ADAPTER_NAME, *(f"{ADAPTER_NAME}_{index}" for index in range(1, len(group)))]
    try:
        peft_model = load_with_peft(module, first)
        for adapter, name in zip(others, names[1:], strict=True):
            add_with_peft(peft_model, adapter, name)
        tuner: Any = peft_model.base_model
        tuner.set_adapter(names)
    except (NotImplementedError, TypeError, ValueError) as error:
        if raised_by_peft(error):
            raise ReferenceUnavailable(f"PEFT cannot run {first.path} unmerged: {error}") from error
        raise
    if [weight for _, weight in group] == [1]:
        return
    for layer in module.modules():
        if isinstance(layer, LoraLayer):
            for name, (_, weight) in zip(names, group, strict=True):
                layer.set_scale(name, weight)
