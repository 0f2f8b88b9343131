"""Merges adapters into a CLIP: float32, in delta space, cast to the base's dtype last."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tritonclip_export.adapters.lora.change import (
    Change,
    Tensors,
    change_by_peft,
    change_of_lora,
    change_of_task_vector,
)
from tritonclip_export.adapters.lora.compose import Composition, merge_by_sign
from tritonclip_export.adapters.lora.fitting.fit import fit_adapter
from tritonclip_export.adapters.lora.peft.method import MethodAdapter
from tritonclip_export.adapters.lora.peft_fold import Build
from tritonclip_export.adapters.lora.plan import plan_adapter
from tritonclip_export.adapters.lora.refusals import refuse_family_of_other_weights
from tritonclip_export.adapters.lora.report import AdapterReport, MergeReport
from tritonclip_export.adapters.lora.task_vector import TaskVector
from tritonclip_export.adapters.lora.unmerged import AnyAdapter
from tritonclip_export.adapters.lora.weights import base_weights
from tritonclip_export.errors import AdapterError
from tritonclip_export.frameworks import torch

SUM = Composition()


@dataclass(frozen=True)
class MergeResult:
    """The merged weights (names, shapes and dtypes of the base) and what was done."""

    state_dict: dict[str, torch.Tensor]
    report: MergeReport


def merge_adapters(
    state_dict: Tensors,
    adapters: Sequence[tuple[AnyAdapter, float]],
    *,
    build: Build | None = None,
    how: Composition = SUM,
) -> MergeResult:
    """What `plan_merge` plans, done at once."""
    return plan_merge(state_dict, adapters, build=build, how=how)()


def plan_merge(
    state_dict: Tensors,
    adapters: Sequence[tuple[AnyAdapter, float]],
    *,
    build: Build | None = None,
    how: Composition = SUM,
) -> Callable[[], MergeResult]:
    """W + sum_i weight_i * (fold_i(W) - W) for every tensor, or what `how` makes of the differences; done when called.

    Args:
        state_dict: weights under their library's names, any floating dtype; it is not changed.
        adapters: adapters and their factors; 1.0 is the adapter as trained, negative ones subtract it.
        build: makes the checkpoint's model of weights; for adapters that PEFT itself must fold.
        how: sum, TIES or DARE.

    Raises:
        AdapterError: if any adapter does not fit or cannot be folded.
    """
    for adapter, weight in adapters:
        if not math.isfinite(weight):
            raise AdapterError(f"The weight of {adapter.path} is {weight}; give a finite number such as 1.0.")
    sources = [_Source(adapter, weight, _change(adapter, state_dict, build)) for adapter, weight in adapters]

    def merge() -> MergeResult:
        merged = {name: _merge_tensor(name, tensor, sources, how) for name, tensor in state_dict.items()}
        return MergeResult(merged, MergeReport(tuple(source.report() for source in sources), how))

    return merge


@dataclass
class _Source:
    """An adapter with its factor and change, and the account that is kept while the tensors are merged."""

    adapter: AnyAdapter
    weight: float
    change: Change
    changed: int = 0
    delta_square: float = 0.0
    base_square: float = 0.0

    def delta(self, name: str, tensor: torch.Tensor) -> torch.Tensor | None:
        """What the adapter adds to `tensor` of that name, before its factor."""
        delta = self.change.delta(name)
        if delta is not None:
            self.changed += 1
            self.delta_square += delta.square().sum().item()
            self.base_square += tensor.float().square().sum().item()
        return delta

    def report(self) -> AdapterReport:
        """Of all tensors so far."""
        base = math.sqrt(self.base_square)
        return AdapterReport(
            name=self.adapter.name,
            path=str(self.adapter.path),
            method=self.change.method,
            format=self.change.format,
            weight=self.weight,
            namespace=self.adapter.namespace,
            folded=self.changed if self.change.folded is None else self.change.folded,
            replaced=self.change.replaced,
            skipped=self.change.skipped,
            relative_norm=abs(self.weight) * math.sqrt(self.delta_square) / base if base else 0.0,
            warnings=self.change.warnings,
        )


def _change(adapter: AnyAdapter, state_dict: Tensors, build: Build | None) -> Change:
    """Everything about the adapter that can be known before the tensors are merged."""
    if isinstance(adapter, TaskVector):
        return change_of_task_vector(adapter, state_dict)
    if adapter.namespace == "hf":
        refuse_family_of_other_weights(adapter.settings.base_model_class, state_dict, adapter.path)
    if isinstance(adapter, MethodAdapter):
        return change_by_peft(adapter, state_dict, build)
    base = base_weights(adapter.namespace, state_dict)
    return change_of_lora(plan_adapter(fit_adapter(adapter, base), base))


def _merge_tensor(name: str, tensor: torch.Tensor, sources: Sequence[_Source], how: Composition) -> torch.Tensor:
    parts = []
    for index, source in enumerate(sources):
        delta = source.delta(name, tensor)
        if delta is not None:
            parts.append((how.sparsify(delta, index, name), source.weight))
    if not parts:
        return tensor
    deltas, weights = zip(*parts, strict=True)
    delta = (
        merge_by_sign(deltas, weights)
        if how.elects_sign
        else sum(weight * part for part, weight in zip(deltas, weights, strict=True))
    )
    merged = (tensor.float() + delta).to(tensor.dtype)
    if not torch.isfinite(merged).all():
        raise AdapterError(
            f"{name} is not finite in {tensor.dtype} after the merge; check the weights of the adapters, or "
            "export the base model in float32."
        )
    return merged
