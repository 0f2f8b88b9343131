"""What a tower could reach at most on a device, by the roofline model.

Williams, Waterman, Patterson, "Roofline: an insightful visual performance model for multicore architectures", Commun.
ACM 52(4), 2009: attainable operations a second = min(peak, intensity x bandwidth), where the intensity is operations
per byte that moves to or from memory.

Of a batch of B items, with F operations an item, W bytes of weights and A bytes of input and output an item, the least
that has to move is W + B A: every weight once, activations never. So intensity = B F / (W + B A), and what is
attainable is a bound that no runtime passes, closer the better its kernels keep activations in caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # They import onnx and torch, which the arithmetic does not need.
    from tritonclip_bench.gpu.series import Series
    from tritonclip_bench.gpu.subject import Case


@dataclass(frozen=True)
class Item:
    """What one item costs a device at least, whatever runs it.

    Attributes:
        flops: operations; a multiply-add is two.
        weight_bytes: read once a batch.
        item_bytes: what goes in and comes out of one item.
    """

    flops: float
    weight_bytes: float
    item_bytes: float

    def intensity(self, batch: int) -> float:
        """Operations a byte."""
        return batch * self.flops / (self.weight_bytes + batch * self.item_bytes)

    def attainable(self, batch: int, peak: float, bandwidth: float) -> float:
        """Items a second at most, of `peak` operations and `bandwidth` bytes a second."""
        return min(peak, self.intensity(batch) * bandwidth) / self.flops


@dataclass(frozen=True)
class Roof:
    """One tower at one batch size.

    Attributes:
        intensity: operations a byte.
        bound: what limits it, "compute" or "memory".
        attainable: items a second.
        reached: items a second of the fastest runtime, and its name; None where nothing was measured.
        share: of the attainable that was reached, 0 to 1.
    """

    case: str
    batch: int
    intensity: float
    bound: str
    attainable: float
    reached: float | None
    runtime: str | None
    share: float | None


def roofline(cases: Sequence[Case], series: Sequence[Series], peak: float, bandwidth: float) -> list[Roof]:
    """One row a tower, length and batch size that was measured.

    Args:
        peak: operations a second.
        bandwidth: bytes a second.
    """
    rows = []
    for case in cases:
        of_case = [one for one in series if one.case == case.name]
        for batch in sorted({point.batch for one in of_case for point in one.points}):
            reached = [
                (point.items_per_s.median, one.runtime)
                for one in of_case
                for point in one.points
                if point.batch == batch
            ]
            rows.append(_roof(case, batch, max(reached, default=None), peak, bandwidth))
    return rows


def _roof(case: Case, batch: int, reached: tuple[float, str] | None, peak: float, bandwidth: float) -> Roof:
    item = Item(case.flops, case.weight_bytes, case.item_bytes)
    intensity, attainable = item.intensity(batch), item.attainable(batch, peak, bandwidth)
    rate, runtime = reached or (None, None)
    bound = "compute" if intensity * bandwidth >= peak else "memory"
    return Roof(
        case.name, batch, intensity, bound, attainable, rate, runtime, None if rate is None else rate / attainable
    )
