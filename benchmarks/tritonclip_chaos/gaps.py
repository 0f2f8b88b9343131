"""How long callers went without a good answer."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from tritonclip_chaos.records import Sample


def longest_gap(samples: Iterable[Sample], begin_s: float, end_s: float, kinds: Iterable[str]) -> float:
    """Seconds between two good answers of one kind of call, at the longest, between two moments.

    Both moments count as ends of a gap: a kind without any answer was gone all the time. A gap of one kind is not
    hidden by the answers of the others.
    """
    moments: dict[str, list[float]] = {kind: [] for kind in kinds}
    for sample in samples:
        if sample.outcome == "answered" and sample.kind in moments and begin_s <= sample.end_s <= end_s:
            moments[sample.kind].append(sample.end_s)
    longest = 0.0
    for ends in moments.values():
        ordered = [begin_s, *sorted(ends), end_s]
        longest = max(longest, *(after - before for before, after in pairwise(ordered)))
    return longest


def back_after(samples: Iterable[Sample], moment_s: float, kinds: Iterable[str]) -> float | None:
    """Seconds from a moment until every kind of call has been answered well that began after it; None: not yet."""
    first = dict.fromkeys(kinds, float("inf"))
    for sample in samples:
        if sample.outcome == "answered" and sample.begin_s >= moment_s and sample.kind in first:
            first[sample.kind] = min(first[sample.kind], sample.end_s)
    latest = max(first.values(), default=moment_s)
    return None if latest == float("inf") else latest - moment_s
