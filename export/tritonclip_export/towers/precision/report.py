"""What a narrower precision did inside a tower, for people who have to decide whether to trust it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from tritonclip_export.frameworks import torch
from tritonclip_export.towers.precision.calibrate import Activities, Activity

MOST_LISTED = 10


@dataclass(frozen=True)
class Layer:
    """A module and the largest absolute value that calibration saw going in or out; `scores` those of its attention."""

    name: str
    kind: str
    maximum: float
    scores: float


@dataclass(frozen=True)
class Loss:
    """A module whose output is further from float32 than its input is.

    Attributes:
        error_in, error_out: |narrow - float32| / |float32| over a sample of the values; None where one is not finite.
    """

    name: str
    kind: str
    error_in: float | None
    error_out: float | None

    def describe(self) -> str:
        """For an error message."""
        errors = ["not finite" if error is None else f"{error:.1e}" for error in (self.error_in, self.error_out)]
        return f"{self.name} ({self.kind}; relative error {errors[0]} going in, {errors[1]} coming out)"


@dataclass(frozen=True)
class LayerReport:
    """One tower.

    Attributes:
        largest: the layers with the largest values.
        islands: the layers that stay in float32 because of their values or scores.
        lossy: the layers that lost most, worst first.
    """

    largest: list[Layer] = field(default_factory=list)
    islands: list[Layer] = field(default_factory=list)
    lossy: list[Loss] = field(default_factory=list)


def layer_report(wide: Activities, narrow: Activities, islands: Sequence[str]) -> LayerReport:
    """Compare what one tower's modules saw in float32, `wide`, and in float16, `narrow`."""
    layers = [Layer(name, one.kind, max(one.maximum, one.heads), one.scores) for name, one in wide.items()]
    largest = sorted(layers, key=lambda layer: -layer.maximum)[:MOST_LISTED]
    losses = [loss for name in wide if name in narrow for loss in _loss(name, wide[name], narrow[name])]
    # The sort is stable, and modules are listed as they end: of what overflows, the first and innermost leads.
    lossy = sorted(losses, key=_lost, reverse=True)[:MOST_LISTED]
    return LayerReport(largest, [layer for layer in layers if layer.name in islands], lossy)


def _loss(name: str, wide: Activity, narrow: Activity) -> list[Loss]:
    if wide.made is None or narrow.made is None:
        return []
    given = 0.0 if wide.given is None or narrow.given is None else _error(wide.given, narrow.given)
    made = _error(wide.made, narrow.made) if narrow.finite else None
    return [Loss(name, wide.kind, given, made)]


def _lost(loss: Loss) -> float:
    if loss.error_in is None:
        return -math.inf
    return math.inf if loss.error_out is None else loss.error_out - loss.error_in


def _error(wide: torch.Tensor, narrow: torch.Tensor) -> float | None:
    if wide.shape != narrow.shape or not narrow.isfinite().all():
        return None
    # Of a tensor of zeros the error is absolute.
    size = float(wide.norm()) or 1.0
    return float((wide - narrow).norm()) / size
