"""How numbers are written for people: three digits that count, thousands apart, a dash for what is not known."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from tritonclip_bench.cost import dollars

NOTHING = "–"
MILLION = 1e6
# What `money` and `column` write.
NUMBER = re.compile(r"[$€£]?-?[\d,]+(\.\d+)?( [A-Z]{3})?")


def figure(value: float | None) -> str:
    """One number by itself, to three significant digits and whole from 100: 0.0123, 1.23, 12.3, 1,234, 5.34 million."""
    if value is None:
        return NOTHING
    if value == 0:
        return "0"
    if abs(value) >= MILLION:
        return f"{figure(value / MILLION)} million"
    magnitude = math.floor(math.log10(abs(value)))
    return f"{value:,.{min(max(0, 2 - magnitude), 8)}f}"


def plus_minus(mean: float, half_width: float) -> tuple[str, str]:
    """A mean and the half-width of its interval, both to the place that the half-width's first digit has, or finer."""
    if max(abs(mean), half_width) >= MILLION or half_width <= 0 or not mean:
        return figure(mean), figure(half_width)
    places = max(2 - math.floor(math.log10(abs(mean))), -math.floor(math.log10(half_width)))
    decimals = min(max(0, places), 8)
    return f"{mean:,.{decimals}f}", f"{half_width:,.{decimals}f}"


def money(value: float | None, currency: str) -> str:
    """An amount as everywhere else (`dollars.money`)."""
    return NOTHING if value is None else dollars.money(value, currency)


def share(value: float | None) -> str:
    """A share of 0 to 1 in per cent."""
    return NOTHING if value is None else f"{figure(value * 100)} %"


def column(values: Sequence[float | None]) -> list[str]:
    """Numbers of one column, all with the same decimals: what the largest needs for three digits, at most 6."""
    known = [abs(value) for value in values if value is not None]
    if all(value == int(value) for value in known) or max(known) >= 10_000:
        decimals = 0
    else:
        decimals = min(max(1, 2 - math.floor(math.log10(max(known)))), 6)
    return [NOTHING if value is None else f"{value:,.{decimals}f}" for value in values]
