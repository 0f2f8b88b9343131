"""Merges adapters into a CLIP: float32, in delta space, cast to the base's dtype last."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tritonclip_export.errors import AdapterError
from tritonclip_export.frameworks import torch
from tritonclip_export.lora.folding import row_delta, weight_delta
from tritonclip_export.lora.plan import Plan, plan_adapter
from tritonclip_export.lora.read import Adapter
from tritonclip_export.lora.report import AdapterReport, MergeReport
from tritonclip_export.lora.weights import base_weights


@dataclass(frozen=True)
class MergeResult:
    """The merged weights (names, shapes and dtypes of the base) and what was done."""

    state_dict: dict[str, torch.Tensor]
    report: MergeReport


def merge_adapters(state_dict: Mapping[str, torch.Tensor], adapters: Sequence[tuple[Adapter, float]]) -> MergeResult:
    """W + sum_i weight_i * (fold_i(W) - W) for every tensor.

    Args:
        state_dict: weights under open_clip's native names, any floating dtype; it is not changed.
        adapters: adapters and their factors; 1.0 is the adapter as trained, negative ones subtract it.

    Raises:
        AdapterError: before anything is merged, if any adapter does not fit or cannot be folded.
    """
    for adapter, weight in adapters:
        if not math.isfinite(weight):
            raise AdapterError(f"The weight of {adapter.path} is {weight}; give a finite number such as 1.0.")
    plans = [plan_adapter(adapter, base_weights(adapter.namespace, state_dict)) for adapter, _ in adapters]
    total: dict[str, torch.Tensor] = {}
    reports = []
    for plan, (_, weight) in zip(plans, adapters, strict=True):
        deltas = {name: weight * delta for name, delta in plan.base.native(_deltas(plan)).items()}
        reports.append(_report(plan, weight, deltas, state_dict))
        for name, delta in deltas.items():
            total[name] = total[name] + delta if name in total else delta
    merged = {name: _apply(name, tensor, total.get(name)) for name, tensor in state_dict.items()}
    return MergeResult(merged, MergeReport(tuple(reports)))


def _deltas(plan: Plan) -> dict[str, torch.Tensor]:
    """fold(W) - W of every tensor that the adapter changes, float32, by the adapter's own names."""
    deltas: dict[str, torch.Tensor] = {}

    def current(name: str) -> torch.Tensor:
        weight = plan.base.get(name)
        assert weight is not None, name
        return weight + deltas[name] if name in deltas else weight

    def add(name: str, delta: torch.Tensor) -> None:
        deltas[name] = deltas[name] + delta if name in deltas else delta

    # Replaced tensors first: PEFT's LoRA acts on top of the values that it loaded.
    for name, tensor in plan.replacements.items():
        add(name, tensor - current(name))
    for name, (indices, rows) in plan.token_rows.items():
        add(name, row_delta(current(name), rows, indices))
    for fold in plan.folds:
        target = fold.target
        weight = current(target.weight)
        add(target.weight, weight_delta(fold.module, weight, target.kind, fold.scale, target.repeats))
        if fold.module.bias is not None and target.bias is not None:
            add(target.bias, fold.scale * fold.module.bias)
    return deltas


def _apply(name: str, tensor: torch.Tensor, delta: torch.Tensor | None) -> torch.Tensor:
    if delta is None:
        return tensor
    merged = (tensor.float() + delta).to(tensor.dtype)
    if not torch.isfinite(merged).all():
        raise AdapterError(
            f"{name} is not finite in {tensor.dtype} after the merge; check the weights of the adapters, or "
            "export the base model in float32."
        )
    return merged


def _report(
    plan: Plan, weight: float, deltas: Mapping[str, torch.Tensor], state_dict: Mapping[str, torch.Tensor]
) -> AdapterReport:
    adapter = plan.adapter
    base = _norm({name: state_dict[name].float() for name in deltas})
    return AdapterReport(
        name=adapter.name,
        path=str(adapter.path),
        weight=weight,
        namespace=adapter.namespace,
        folded=len(plan.folds),
        replaced=(*plan.replacements, *plan.token_rows),
        skipped=tuple(plan.skipped),
        relative_norm=_norm(deltas) / base if base else 0.0,
        warnings=tuple(plan.warnings),
    )


def _norm(tensors: Mapping[str, torch.Tensor]) -> float:
    """The Frobenius norm over all tensors together."""
    return math.sqrt(sum(tensor.square().sum().item() for tensor in tensors.values()))
