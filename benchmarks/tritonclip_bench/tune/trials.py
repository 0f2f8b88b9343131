"""What a sweep of settings is made of: its candidates, their runs, and how long it takes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tritonclip_bench.results.spread import Spread
from tritonclip_export.settings import Settings

# The present settings are measured once for so many others.
GROUP = 3
FINALISTS = 2
MIN_ROUNDS = 3
# The longest round of the search, in rounds of the first.
MOST_LENGTHS = 4
# Until the first run has been timed: starting a server and the load generator, and stopping both.
OVERHEAD_S = 12.0


@dataclass(frozen=True)
class Candidate:
    """Settings, and the export that they serve: the user's own, or by its name another one of the same model."""

    settings: Settings
    export: str = ""


@dataclass(frozen=True)
class Measured:
    """What one run of the load gave: good items a second, p99 in milliseconds, and all of it."""

    items_per_s: float
    p99_ms: float
    results: dict[str, Any] = field(default_factory=dict, compare=False)


@dataclass
class Round:
    """One run of a candidate.

    Attributes:
        phase: of the sweep; `number` counts the rounds of all phases.
        seconds: measured time.
        ratio: items a second over those of the reference in the same round; None for the reference itself.
    """

    phase: str
    number: int
    seconds: int
    measured: Measured
    ratio: float | None = None


@dataclass
class Trial:
    """All runs of a candidate; `failed` is why there are no more."""

    candidate: Candidate
    rounds: list[Round] = field(default_factory=list)
    failed: str = ""

    def ratios(self, phase: str) -> list[float]:
        """Of the runs in a phase."""
        return [one.ratio for one in self.rounds if one.phase == phase and one.ratio is not None]

    def score(self) -> float:
        """The mean ratio of all runs, by their lengths; 1 for the present settings, 0 for none."""
        compared = [(one.ratio, one.seconds) for one in self.rounds if one.ratio is not None]
        if not compared:
            return 1.0 if self.rounds else 0.0
        return sum(ratio * seconds for ratio, seconds in compared) / sum(seconds for _, seconds in compared)


@dataclass(frozen=True)
class Effort:
    """How long a sweep takes at most.

    Attributes:
        seconds: measured time of the shortest runs.
        warmup_s: before each of them.
        rounds: of the finalists.
        budget_s: of everything.
        within_p99_ms: an objective: settings that miss it lose against all that do not.
    """

    seconds: int
    warmup_s: int
    rounds: int
    budget_s: float
    within_p99_ms: float = math.inf

    @property
    def has_objective(self) -> bool:
        """Whether there is an objective."""
        return self.within_p99_ms < math.inf


@dataclass(frozen=True)
class Verdict:
    """What a comparison came to.

    Attributes:
        kind: "better", "as good" (the present settings are), "missed" (nothing meets the objective) or "undecided".
        leader: what is better, or was the most promising; None where nothing was.
        ratio: of the leader in the final rounds, if it came to them.
        reason: for people.
    """

    kind: str
    leader: Candidate | None
    ratio: Spread | None
    reason: str

    @property
    def best(self) -> Candidate | None:
        """What is better; None unless something is."""
        return self.leader if self.kind == "better" else None


def predicted(sizes: Sequence[int], effort: Effort, exports: int) -> tuple[int, float, float]:
    """The most runs of a sweep over phases of so many candidates, their seconds, and the seconds of the least sweep."""
    each_s = OVERHEAD_S + effort.warmup_s
    runs, measured_s = 0, 0.0
    for position, size in enumerate(filter(None, sizes)):
        left = size
        for length in lengths():
            # From the second phase on the best so far runs along.
            group = left + (position > 0)
            count = group + math.ceil(group / GROUP)
            runs, measured_s = runs + count, measured_s + count * effort.seconds * length
            if left <= 2:
                break
            left = math.ceil(left / 2)
    finals = FINALISTS + 1 + (exports + 1 if exports else 0)
    runs, measured_s = runs + effort.rounds * finals, measured_s + effort.rounds * finals * effort.seconds
    least = min(max(sizes, default=0), GROUP) + 1 + MIN_ROUNDS * finals
    return runs, runs * each_s + measured_s, least * (each_s + effort.seconds)


def lengths() -> Iterable[int]:
    """Of the rounds of a race, in first rounds: each twice the one before, up to the longest."""
    return itertools.chain([1, 2], itertools.repeat(MOST_LENGTHS))


def groups(candidates: Sequence[Candidate]) -> list[Sequence[Candidate]]:
    return [candidates[begin : begin + GROUP] for begin in range(0, len(candidates), GROUP)]
