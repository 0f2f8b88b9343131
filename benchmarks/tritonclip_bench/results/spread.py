"""How far measured values may lie from the truth, and whether two series of them differ by more than that.

The values are one figure of each of several whole runs. Requests within a run are no independent samples: they share
the server's state, the order of the images and the moment, so runs are what is counted.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Spread:
    """A mean and how well it is known.

    Attributes:
        n: values.
        mean, low, high: of the values; `low` and `high` are the least and the greatest that were measured.
        half_width: of the 95 % confidence interval of the mean, Student's t with n - 1 degrees of freedom; None for
            one value, which tells nothing of its own spread.
        relative: `half_width` over the mean; None for one value or a mean of 0.
    """

    n: int
    mean: float
    low: float
    high: float
    half_width: float | None
    relative: float | None

    def to_dict(self) -> dict[str, float | None]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Difference:
    """The second mean less the first, and how well it is known.

    Attributes:
        value: of the means.
        half_width: of its 95 % confidence interval (Welch's t test); None where a side has one value.
        relative: `value` over the first mean; None where that is 0.
    """

    value: float
    half_width: float | None
    relative: float | None

    @property
    def exceeds_noise(self) -> bool | None:
        """Whether 0 lies outside the interval; None where there is none."""
        return None if self.half_width is None else abs(self.value) > self.half_width

    def to_dict(self) -> dict[str, float | bool | None]:
        """For JSON."""
        return {**asdict(self), "exceeds_noise": self.exceeds_noise}


def spread(values: Sequence[float]) -> Spread:
    """The spread of at least one value."""
    mean = statistics.fmean(values)
    half_width = None
    if len(values) > 1:
        half_width = _quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    relative = None if half_width is None or not mean else half_width / abs(mean)
    return Spread(len(values), mean, min(values), max(values), half_width, relative)


def difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """How much greater `second` is than `first`, on average; at least one value each.

    Degrees of freedom after Welch and Satterthwaite (B. L. Welch, Biometrika 34, 1947).
    """
    before, after = statistics.fmean(first), statistics.fmean(second)
    half_width = None
    if len(first) > 1 and len(second) > 1:
        errors = [statistics.variance(values) / len(values) for values in (first, second)]
        half_width = 0.0
        if sum(errors):
            parts = (error**2 / (len(values) - 1) for error, values in zip(errors, (first, second), strict=True))
            half_width = _quantile(sum(errors) ** 2 / sum(parts)) * math.sqrt(sum(errors))
    return Difference(after - before, half_width, (after - before) / before if before else None)


def whole_runs(runs: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Of the results of each run, those that went to their end; all, where none did."""
    return [results for results in runs if not results.get("broken")] or runs


def spreads(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | None] | None]:
    """The spread of throughput and latency over the results of each run, for JSON; None where nothing was answered."""
    totals = [results["total"] for results in whole_runs(runs)]
    answered = [total["latency_ms"] for total in totals if total["latency_ms"]]
    columns = {
        **{name: [total[name] for total in totals] for name in ("items_per_s", "requests_per_s")},
        **{f"{name}_ms": [times[name] for times in answered] for name in ("p50", "p99")},
    }
    return {name: spread(values).to_dict() if values else None for name, values in columns.items()}


def _quantile(degrees: float) -> float:
    """Student's t that the interval reaches on either side."""
    from scipy.stats import t

    return float(t.ppf((1 + CONFIDENCE) / 2, degrees))
