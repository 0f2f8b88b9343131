"""Merges adapters into a CLIP: float32, in delta space, cast to the base's dtype last."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from tritonclip_export.errors import AdapterError
from tritonclip_export.frameworks import torch
from tritonclip_export.lora.compose import Composition, merge_by_sign
from tritonclip_export.lora.fit import fit_adapter
from tritonclip_export.lora.folding import row_delta, weight_delta
from tritonclip_export.lora.peft_fold import Build, fold_by_peft
from tritonclip_export.lora.peft_merge import MethodAdapter
from tritonclip_export.lora.plan import Plan, plan_adapter
from tritonclip_export.lora.refusals import refuse_family_of_other_weights
from tritonclip_export.lora.report import AdapterReport, MergeReport, Skipped
from tritonclip_export.lora.task_vector import TaskVector, check_task_vector, scoring_note, task_vector_deltas
from tritonclip_export.lora.unmerged import AnyAdapter
from tritonclip_export.lora.weights import base_weights

Tensors = Mapping[str, torch.Tensor]
SUM = Composition()


@dataclass(frozen=True)
class MergeResult:
    """The merged weights (names, shapes and dtypes of the base) and what was done."""

    state_dict: dict[str, torch.Tensor]
    report: MergeReport


@dataclass(frozen=True)
class Change:
    """What one adapter does to the weights: adapted - base, float32, by the state dict's names, and its account."""

    deltas: dict[str, torch.Tensor]
    method: str
    folded: int
    format: str = "peft"
    replaced: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    warnings: tuple[str, ...] = ()


def merge_adapters(
    state_dict: Tensors,
    adapters: Sequence[tuple[AnyAdapter, float]],
    *,
    build: Build | None = None,
    how: Composition = SUM,
) -> MergeResult:
    """W + sum_i weight_i * (fold_i(W) - W) for every tensor, or what `how` makes of the differences.

    Args:
        state_dict: weights under their library's names, any floating dtype; it is not changed.
        adapters: adapters and their factors; 1.0 is the adapter as trained, negative ones subtract it.
        build: makes the checkpoint's model of weights; for adapters that PEFT itself must fold.
        how: sum, TIES or DARE.

    Raises:
        AdapterError: before anything is merged, if any adapter does not fit or cannot be folded.
    """
    for adapter, weight in adapters:
        if not math.isfinite(weight):
            raise AdapterError(f"The weight of {adapter.path} is {weight}; give a finite number such as 1.0.")
    folds = [_check(adapter, state_dict, build) for adapter, _ in adapters]
    # Where every sign counts the differences stay apart; else they are summed as they come, to save memory.
    parts: dict[str, list[tuple[torch.Tensor, float]]] = {}
    reports = []
    for index, (fold, (adapter, weight)) in enumerate(zip(folds, adapters, strict=True)):
        change = fold()
        reports.append(_report(adapter, weight, change, state_dict))
        while change.deltas:
            name, delta = change.deltas.popitem()
            kept = how.sparsify(delta, index, name)
            if how.elects_sign:
                parts.setdefault(name, []).append((kept, weight))
            else:
                before = parts[name][0][0] if name in parts else 0
                parts[name] = [(before + weight * kept, 1.0)]
    merged = {name: _apply(name, tensor, parts.pop(name, []), how) for name, tensor in state_dict.items()}
    return MergeResult(merged, MergeReport(tuple(reports), how))


def _check(adapter: AnyAdapter, state_dict: Tensors, build: Build | None) -> Callable[[], Change]:
    """Everything that can be known without folding, and the folding to be done later."""
    if isinstance(adapter, TaskVector):
        check_task_vector(adapter, state_dict)
        return partial(_change_of_task_vector, adapter, state_dict)
    if adapter.namespace == "hf":
        refuse_family_of_other_weights(adapter.settings.base_model_class, state_dict, adapter.path)
    if isinstance(adapter, MethodAdapter):
        # PEFT checks while it folds, and nothing is merged before that.
        change = _change_by_peft(adapter, state_dict, build)
        return lambda: change
    base = base_weights(adapter.namespace, state_dict)
    return partial(_change_of_lora, plan_adapter(fit_adapter(adapter, base), base))


def _change_of_task_vector(vector: TaskVector, state_dict: Tensors) -> Change:
    deltas = task_vector_deltas(vector, state_dict)
    note = scoring_note(vector, state_dict)
    return Change(deltas, "task vector", len(deltas), "checkpoint", warnings=() if note is None else (note,))


def _change_by_peft(adapter: MethodAdapter, state_dict: Tensors, build: Build | None) -> Change:
    folded = fold_by_peft(adapter, state_dict, build)
    warnings = (
        (f"{len(folded.skipped)} adapted layers never run and are left out, as in the trained model's forward.",)
        if folded.skipped
        else ()
    )
    return Change(folded.deltas, adapter.settings.method, folded.modules, skipped=folded.skipped, warnings=warnings)


def _change_of_lora(plan: Plan) -> Change:
    deltas = plan.base.native(_deltas(plan))
    replaced = (*plan.replacements, *plan.token_rows)
    warnings = (*plan.adapter.notes, *plan.warnings)
    return Change(deltas, "LORA", len(plan.folds), plan.adapter.format, replaced, tuple(plan.skipped), warnings)


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


def _apply(name: str, tensor: torch.Tensor, parts: list[tuple[torch.Tensor, float]], how: Composition) -> torch.Tensor:
    if not parts:
        return tensor
    deltas, weights = zip(*parts, strict=True)
    delta = merge_by_sign(deltas, weights) if how.elects_sign else deltas[0]
    merged = (tensor.float() + delta).to(tensor.dtype)
    if not torch.isfinite(merged).all():
        raise AdapterError(
            f"{name} is not finite in {tensor.dtype} after the merge; check the weights of the adapters, or "
            "export the base model in float32."
        )
    return merged


def _report(adapter: AnyAdapter, weight: float, change: Change, state_dict: Tensors) -> AdapterReport:
    base = _norm(state_dict[name].float() for name in change.deltas)
    return AdapterReport(
        name=adapter.name,
        path=str(adapter.path),
        method=change.method,
        format=change.format,
        weight=weight,
        namespace=adapter.namespace,
        folded=change.folded,
        replaced=change.replaced,
        skipped=change.skipped,
        relative_norm=abs(weight) * _norm(change.deltas.values()) / base if base else 0.0,
        warnings=change.warnings,
    )


def _norm(tensors: Iterable[torch.Tensor]) -> float:
    """The Frobenius norm over all tensors together."""
    return math.sqrt(sum(tensor.square().sum().item() for tensor in tensors))
