"""Checks one adapter against a model, completely, before anything is folded."""

from __future__ import annotations

from dataclasses import dataclass, field

from tritonclip_export.adapters.lora.adapter import Adapter
from tritonclip_export.adapters.lora.config import CONFIG_FILE
from tritonclip_export.adapters.lora.fitting.prefix import find_prefix
from tritonclip_export.adapters.lora.fitting.shapes import misfit
from tritonclip_export.adapters.lora.naming.keys import LowRank, Parts, sort_parts
from tritonclip_export.adapters.lora.report import Skipped
from tritonclip_export.adapters.lora.targets import (
    NEWEST_KNOWN_PEFT,
    Dead,
    Target,
    locate,
    parse_version,
    pattern_name,
)
from tritonclip_export.adapters.lora.weights import BaseWeights
from tritonclip_export.errors import AdapterError
from tritonclip_export.frameworks import torch


@dataclass(frozen=True)
class Fold:
    """A low-rank delta and the tensors it goes into."""

    module: LowRank
    target: Target
    scale: float


@dataclass
class Plan:
    """What to fold where, by the adapter's own names; every name and shape has been checked."""

    adapter: Adapter
    base: BaseWeights
    prefix: str
    folds: list[Fold] = field(default_factory=list)
    # Embedding weight's name to (row indices int64 [n], their new values float32 [n, width]).
    token_rows: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    replacements: dict[str, torch.Tensor] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def plan_adapter(adapter: Adapter, base: BaseWeights) -> Plan:
    """Decide what every tensor of `adapter` does to the model.

    Raises:
        AdapterError: a tensor that the model has no place for, or that has another shape there.
    """
    parts = sort_parts(adapter.tensors)
    plan = Plan(adapter, base, find_prefix(adapter, parts, base))
    homeless = _plan_modules(plan, parts) + _plan_token_rows(plan, parts) + _plan_replacements(plan, parts)
    if homeless:
        raise AdapterError(
            f"{len(homeless)} modules or tensors of {adapter.path} are not in this model (first: "
            f"{', '.join(homeless[:3])}). {_other_model(adapter)}"
        )
    if not (plan.folds or plan.token_rows or plan.replacements or plan.skipped):
        raise AdapterError(f"{adapter.path} holds no tensors; save the adapter again with PEFT.")
    return plan


def _plan_modules(plan: Plan, parts: Parts) -> list[str]:
    homeless, peak = [], 0.0
    for module in parts.low_rank:
        target = locate(module, plan.prefix, plan.base, plan.adapter.settings.peft_version)
        if target is None:
            homeless.append(module.trained)
        elif isinstance(target, Dead):
            plan.skipped.append(Skipped(module.trained, target.reason))
            peak = max(peak, module.b.abs().max().item())
        else:
            plan.folds.append(_checked_fold(plan, module, target))
    if peak > 0:
        plan.warnings.append(
            f"{len(plan.skipped)} adapted layers never run, yet hold trained values (max |B| {peak:.3g}); they are "
            "left out, as in the trained model's forward. PEFT's merge_and_unload would add them."
        )
    _refuse_unknown_peft(plan)
    _warn_of_ambiguous_alpha(plan)
    return homeless


def _checked_fold(plan: Plan, module: LowRank, target: Target) -> Fold:
    settings = plan.adapter.settings
    name = pattern_name(module.trained)
    weight = plan.base.get(target.weight)
    assert weight is not None, target.weight
    if problem := misfit(module, target, weight, settings.rank(name)):
        raise AdapterError(f"{plan.adapter.path}: {problem}. {_other_model(plan.adapter)}")
    _check_declared(plan, module, target)
    _check_bias(plan, module, target)
    return Fold(module, target, settings.scale(name))


def _check_declared(plan: Plan, module: LowRank, target: Target) -> None:
    settings = plan.adapter.settings
    declared = {
        "DoRA magnitude": ("use_dora", settings.use_dora, module.magnitude),
        "bias of lora_B": ("lora_bias", settings.lora_bias, module.bias),
    }
    for what, (name, expected, tensor) in declared.items():
        if expected != (tensor is not None):
            raise AdapterError(
                f"{module.trained} in {plan.adapter.path} has {'no' if expected else 'a'} {what}, but {name} is "
                f"{expected}; config and weights are of two adapters. Save the adapter again with PEFT."
            )
    if settings.use_dora and target.weight.endswith(".in_proj_weight"):
        raise AdapterError(
            f"{module.trained} in {plan.adapter.path} has DoRA on nn.MultiheadAttention, which PEFT does not "
            "train; target the Linear layers instead."
        )


def _check_bias(plan: Plan, module: LowRank, target: Target) -> None:
    if module.bias is None or target.bias is not None:
        return
    if not target.weight.endswith(".in_proj_weight"):
        raise AdapterError(
            f"{module.trained} in {plan.adapter.path} has a lora_bias, but the layer has no bias to hold it; "
            "train with lora_bias=False or leave the layer out."
        )
    plan.skipped.append(
        Skipped(f"{module.trained}.lora_B.bias", "PEFT's attention adds B @ A to in_proj and leaves the bias out")
    )


def _plan_token_rows(plan: Plan, parts: Parts) -> list[str]:
    homeless = []
    for module, rows in parts.token_rows.items():
        name = f"{plan.prefix}{module}.weight"
        weight = plan.base.get(name)
        indices = list(plan.adapter.settings.token_indices(module))
        if weight is None:
            homeless.append(module)
        elif rows.shape != (len(indices), weight.shape[1]) or not _within(indices, weight.shape[0]):
            raise AdapterError(
                f"trainable_tokens_delta of {module} in {plan.adapter.path} is {tuple(rows.shape)} for "
                f"{len(indices)} tokens (highest {max(indices, default=None)}), but {name} is "
                f"{tuple(weight.shape)}. {_other_model(plan.adapter)}"
            )
        else:
            plan.token_rows[name] = (torch.tensor(indices, dtype=torch.int64), rows)
    return homeless


def _within(indices: list[int], rows: int) -> bool:
    return all(0 <= index < rows for index in indices)


def _plan_replacements(plan: Plan, parts: Parts) -> list[str]:
    homeless = []
    for key, tensor in parts.replacements.items():
        name = plan.prefix + key
        weight = plan.base.get(name)
        if weight is None:
            homeless.append(key)
        elif weight.shape != tensor.shape:
            raise AdapterError(
                f"{key} in {plan.adapter.path} is {tuple(tensor.shape)}, but {name} is {tuple(weight.shape)} in "
                f"this model. {_other_model(plan.adapter)}"
            )
        else:
            plan.replacements[name] = tensor
    undeclared = [key for key in parts.replacements if not plan.adapter.settings.declares(key)]
    if undeclared and not homeless:
        plan.warnings.append(
            f"{len(undeclared)} tensors replace the base's though adapter_config.json names them neither in "
            f"modules_to_save nor by bias (first: {undeclared[0]}); PEFT loads them, so they are merged."
        )
    return homeless


def _refuse_unknown_peft(plan: Plan) -> None:
    """A release that changes how often it adds an out_proj would otherwise be merged wrongly in silence."""
    version = parse_version(plan.adapter.settings.peft_version)
    newer = version is not None and version > NEWEST_KNOWN_PEFT
    if newer and any(fold.target.repeats != 1 for fold in plan.folds):
        newest = ".".join(map(str, NEWEST_KNOWN_PEFT))
        raise AdapterError(
            f"{plan.adapter.path} was trained with PEFT {plan.adapter.settings.peft_version}, and this version knows "
            f"PEFT up to {newest}, which adds the change of an nn.MultiheadAttention's out_proj twice. If that release "
            f"does so too, set peft_version in the adapter's {CONFIG_FILE} to {newest}; else merge with that PEFT and "
            "export the merged model."
        )


def _warn_of_ambiguous_alpha(plan: Plan) -> None:
    settings = plan.adapter.settings
    names = [pattern_name(fold.module.trained) for fold in plan.folds]
    ambiguous = {name: keys for name in names if (keys := settings.ambiguous_patterns(name))}
    if ambiguous:
        name, keys = next(iter(ambiguous.items()))
        plan.warnings.append(
            f"{len(ambiguous)} modules match several keys of alpha_pattern (first: {name}, {', '.join(keys)}). PEFT "
            "sorts the keys when it saves and takes the first, so training may have used another; merged as PEFT "
            "loads it."
        )


def _other_model(adapter: Adapter) -> str:
    trained_on = adapter.settings.base_model_name or "not recorded"
    return (
        f"It is an adapter for another model (base_model_name_or_path: {trained_on}); give the checkpoint that "
        "it was trained on."
    )
