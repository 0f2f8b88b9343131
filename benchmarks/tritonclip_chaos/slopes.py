"""Whether something grows: a least-squares line, and how sure its slope is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FEWEST = 4


@dataclass(frozen=True)
class Slope:
    """A fitted line.

    Attributes:
        per_s: what is added a second.
        low_per_s, high_per_s: the confidence interval of 95 %.
        mean: of the values.
    """

    per_s: float
    low_per_s: float
    high_per_s: float
    mean: float


def slope(points: Sequence[tuple[float, float]]) -> Slope | None:
    """Fit a line to (seconds, value); None for fewer than four points, which tell no confidence."""
    from scipy import stats

    if len(points) < FEWEST:
        return None
    times, values = zip(*points, strict=True)
    fitted = stats.linregress(times, values)
    width = float(fitted.stderr) * float(stats.t.ppf(0.975, len(points) - 2))
    found = float(fitted.slope)
    return Slope(found, found - width, found + width, sum(values) / len(values))
