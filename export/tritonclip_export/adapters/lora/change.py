"""What one adapter does to the weights, one tensor at a time, so that no second copy of a model is held."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tritonclip_export.adapters.lora.fitting.folding import row_delta, weight_delta
from tritonclip_export.adapters.lora.peft.method import MethodAdapter
from tritonclip_export.adapters.lora.peft_fold import Build, fold_by_peft
from tritonclip_export.adapters.lora.plan import Fold, Plan
from tritonclip_export.adapters.lora.report import Skipped
from tritonclip_export.adapters.lora.task_vector import TaskVector, check_task_vector, scoring_note
from tritonclip_export.frameworks import torch

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Change:
    """An adapter that was checked against a state dict.

    Attributes:
        delta: adapted - base of one tensor, float32, by the state dict's name; None where it stays. Asked once a name.
        folded: how many modules it folds; None: as many as tensors change.
    """

    delta: Callable[[str], torch.Tensor | None]
    method: str
    folded: int | None
    format: str = "peft"
    replaced: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    warnings: tuple[str, ...] = ()


def change_of_task_vector(vector: TaskVector, state_dict: Tensors) -> Change:
    """Every tensor that differs between the two checkpoints."""
    own = check_task_vector(vector, state_dict)
    note = scoring_note(vector, state_dict)

    def delta(name: str) -> torch.Tensor | None:
        if name not in own:
            return None
        tuned, base = vector.tensors[own[name]].float(), state_dict[name].float()
        return None if torch.equal(tuned, base) else tuned - base

    return Change(delta, "task vector", None, "checkpoint", warnings=() if note is None else (note,))


def change_by_peft(adapter: MethodAdapter, state_dict: Tensors, build: Build | None) -> Change:
    """Folded at once: PEFT checks while it folds."""
    folded = fold_by_peft(adapter, state_dict, build)
    warnings = (
        (f"{len(folded.skipped)} adapted layers never run and are left out, as in the trained model's forward.",)
        if folded.skipped
        else ()
    )
    deltas = folded.deltas
    return Change(
        lambda name: deltas.pop(name, None),
        adapter.settings.method,
        folded.modules,
        skipped=folded.skipped,
        warnings=warnings,
    )


def change_of_lora(plan: Plan) -> Change:
    """Replaced tensors, token rows and low-rank products."""
    parts = _parts(plan)
    return Change(
        lambda name: _delta(plan, name, parts[name]) if name in parts else None,
        "LORA",
        len(plan.folds),
        plan.adapter.format,
        (*plan.replacements, *plan.token_rows),
        tuple(plan.skipped),
        (*plan.adapter.notes, *plan.warnings),
    )


@dataclass
class _Part:
    """What of a plan goes into one tensor of the state dict: names in the adapter's grammar, and folds."""

    replacements: list[str] = field(default_factory=list)
    token_rows: list[str] = field(default_factory=list)
    folds: list[Fold] = field(default_factory=list)


def _parts(plan: Plan) -> dict[str, _Part]:
    parts: dict[str, _Part] = defaultdict(_Part)
    native = plan.base.native_name
    for name in plan.replacements:
        parts[native(name)].replacements.append(name)
    for name in plan.token_rows:
        parts[native(name)].token_rows.append(name)
    for fold in plan.folds:
        parts[native(fold.target.weight)].folds.append(fold)
        if fold.module.bias is not None and fold.target.bias is not None:
            parts[native(fold.target.bias)].folds.append(fold)
    return dict(parts)


def _delta(plan: Plan, wanted: str, part: _Part) -> torch.Tensor:
    """fold(W) - W of the tensor `wanted` of the state dict."""
    deltas: dict[str, torch.Tensor] = {}

    def current(name: str) -> torch.Tensor:
        weight = plan.base.get(name)
        assert weight is not None, name
        return weight + deltas[name] if name in deltas else weight

    def add(name: str, delta: torch.Tensor) -> None:
        deltas[name] = deltas[name] + delta if name in deltas else delta

    # Replaced tensors first: PEFT's LoRA acts on top of the values that it loaded.
    for name in part.replacements:
        add(name, plan.replacements[name] - current(name))
    for name in part.token_rows:
        indices, rows = plan.token_rows[name]
        add(name, row_delta(current(name), rows, indices))
    for fold in part.folds:
        target = fold.target
        if plan.base.native_name(target.weight) == wanted:
            weight = current(target.weight)
            add(target.weight, weight_delta(fold.module, weight, target.kind, fold.scale, target.repeats))
        elif target.bias is not None and fold.module.bias is not None:
            add(target.bias, fold.scale * fold.module.bias)
    return plan.base.native(deltas)[wanted]
