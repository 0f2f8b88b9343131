"""The arithmetic: what an adapted module adds to a base weight. Everything is float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tritonclip_export.adapters.lora.naming.keys import LowRank
from tritonclip_export.adapters.lora.targets import Kind
from tritonclip_export.frameworks import torch

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Rule:
    """How one kind of layer is adapted.

    Attributes:
        product: A and B (float32, shapes as in `shapes`) to a delta that reshapes to the weight.
        norm_dims: the dims of the weight that DoRA's norm runs over.
        shapes: the weight's shape and the rank to the shapes of A, B and the magnitude.
    """

    product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    norm_dims: tuple[int, ...]
    shapes: Callable[[Shape, int], tuple[Shape, Shape, Shape]]


RULES: dict[Kind, Rule] = {
    "linear": Rule(
        product=lambda a, b: b @ a,
        norm_dims=(1,),
        shapes=lambda weight, r: ((r, weight[1]), (weight[0], r), (weight[0],)),
    ),
    "conv": Rule(
        product=lambda a, b: b.flatten(1) @ a.flatten(1),
        norm_dims=(1, 2, 3),
        shapes=lambda weight, r: ((r, *weight[1:]), (weight[0], r, 1, 1), (1, weight[0], 1, 1)),
    ),
    "embedding": Rule(
        product=lambda a, b: (b @ a).t(),
        norm_dims=(0,),
        shapes=lambda weight, r: ((r, weight[0]), (weight[1], r), (weight[1],)),
    ),
}


def weight_delta(module: LowRank, weight: torch.Tensor, kind: Kind, scale: float, repeats: int = 1) -> torch.Tensor:
    """What the adaptation adds to `weight` (float32, any layer's shape).

    LoRA: repeats * scale * B @ A. DoRA (https://arxiv.org/abs/2402.09353): V = W + scale * B @ A,
    then V * magnitude / ||V||, minus W.
    """
    rule = RULES[kind]
    delta = rule.product(module.a, module.b).reshape(weight.shape) * (scale * repeats)
    if module.magnitude is None:
        return delta
    adapted = weight + delta
    norm = torch.linalg.vector_norm(adapted, dim=_norm_dims(rule, kind, module.magnitude), keepdim=True)
    change: torch.Tensor = adapted * (module.magnitude.reshape(norm.shape) / norm) - weight
    return change


def has_input_norm(kind: Kind, magnitude: torch.Tensor | None) -> bool:
    """Whether DoRA's norm runs over the outputs, as in LyCORIS with wd_on_out=False: its magnitude is [1, in]."""
    return kind == "linear" and magnitude is not None and magnitude.ndim == 2


def _norm_dims(rule: Rule, kind: Kind, magnitude: torch.Tensor) -> tuple[int, ...]:
    return (0,) if has_input_norm(kind, magnitude) else rule.norm_dims


def row_delta(weight: torch.Tensor, rows: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """What replacing the rows `indices` (int64 [n]) of `weight` [V, D] by `rows` [n, D] adds to it."""
    delta = torch.zeros_like(weight)
    delta[indices] = rows - weight[indices]
    return delta
