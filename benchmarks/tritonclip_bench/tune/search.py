"""Looks for the settings with the highest throughput, and recommends none whose gain may be noise.

Every figure is a ratio to the present settings, measured in the same round, minutes apart at most: a machine that grows
slower or faster favors nobody. The search halves its candidates again and again (K. Jamieson, A. Talwalkar:
Non-stochastic best arm identification, AISTATS 2016). What it found is the best of several by luck too, so none of its
figures proves anything: the finalists run against the present settings anew, and these rounds alone decide.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence

from tritonclip_bench.errors import TrialFailedError
from tritonclip_bench.results.spread import Spread, spread
from tritonclip_bench.tune.trials import (
    FINALISTS,
    MIN_ROUNDS,
    OVERHEAD_S,
    Candidate,
    Effort,
    Measured,
    Round,
    Trial,
    Verdict,
    groups,
    lengths,
)

# A smaller gain is not worth a change.
MIN_GAIN = 0.02
# Looking after every round and stopping at the first good news finds some by luck, but for this many half-widths.
EARLY = 2.0
# As a share, where nothing has been measured twice.
NOISE = 0.1
# Rounds of an objective that the present settings miss, all of which another must meet.
OBJECTIVE_ROUNDS = 5
FINAL = "final"


Measure = Callable[[Candidate, int], Measured]
Phase = tuple[str, Callable[[Candidate], Sequence[Candidate]]]


class Sweep:
    """The trials of one sweep, and what they say.

    Args:
        present: the candidate that all others are compared with.
        measure: runs the load on a candidate for so many seconds, or raises TrialFailedError.
        after: told each trial when it has a new run, or has failed.
        exports: others that are compared at the end, for which time is kept.
        clock: seconds.
    """

    def __init__(
        self,
        present: Candidate,
        measure: Measure,
        effort: Effort,
        *,
        after: Callable[[Trial], None] = lambda trial: None,
        exports: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.present = present
        self.effort = effort
        self.trials: dict[Candidate, Trial] = {}
        self.untried: list[Candidate] = []
        self._measure = measure
        self.after = after
        self._clock = clock
        self._begun_s = clock()
        self._exports = exports
        self._overheads_s: list[float] = []
        self._number = 0

    def search(self, phases: Iterable[Phase]) -> list[Candidate]:
        """Go through the phases, each from the best so far; returns the finalists, none where nothing looks better."""
        champion = self.present
        for name, propose in phases:
            champion = self._race(name, propose(champion), champion)
        others = [trial.candidate for trial in self.trials.values() if trial.candidate not in (champion, self.present)]
        ranked = [*([champion] if champion != self.present else []), *self._ranked(others)]
        # One that seemed worse by no more than the noise may be better.
        margin = MIN_GAIN - self._noise(NOISE)
        return [one for one in ranked if self._looks_better(one, self.present, margin)][:FINALISTS]

    def compare(self, finalists: Sequence[Candidate], reference: Candidate, phase: str = FINAL) -> None:
        """Alternate the finalists with the reference until each differs or does not, or the rounds are used up."""
        for _ in range(self.effort.rounds):
            left = [one for one in self._alive(finalists) if not self._is_settled(one, reference, phase)]
            kept = 0 if phase != FINAL else self._exports_s
            if not left or not self._has_time(len(left) + 1, self.effort.seconds, kept):
                break
            self._round(phase, left, self.effort.seconds, reference)

    def verdict(self, finalists: Sequence[Candidate], reference: Candidate, phase: str = FINAL) -> Verdict:
        """What the rounds of `compare` say."""
        alive = self._alive(finalists)
        better = [one for one in alive if self._is_better(one, reference, phase)]
        if better:
            best = max(better, key=lambda one: self._final_mean(one, phase))
            return Verdict("better", best, self.ratio(best, phase), "the difference exceeds the noise")
        leader = max(alive, key=lambda one: self._final_mean(one, phase), default=None)
        kind, reason = self._why_none(alive, reference, phase)
        return Verdict(kind, leader, None if leader is None else self.ratio(leader, phase), reason)

    def _why_none(self, finalists: Sequence[Candidate], reference: Candidate, phase: str) -> tuple[str, str]:
        """The kind of a verdict that recommends nothing, and its reason."""
        if any(not self._is_settled(one, reference, phase) and self._rounds_left(one, phase) for one in finalists):
            return "undecided", "the budget ended before the comparison did"
        if self.untried:
            return "undecided", f"the budget ended with {len(self.untried)} of them untried"
        if reference in self.trials and not self._meets(reference):
            return "missed", f"nothing kept p99 within {self.effort.within_p99_ms:g} ms in all rounds"
        if not finalists:
            return "as good", f"nothing looked more than {MIN_GAIN:.0%} better"
        return "as good", f"no gain of {MIN_GAIN:.0%} or more exceeds the noise"

    def ratio(self, candidate: Candidate, phase: str = FINAL) -> Spread | None:
        """How the candidate did in the rounds of a phase; None where it was in none."""
        ratios = self.trials[candidate].ratios(phase) if candidate in self.trials else []
        return spread(ratios) if ratios else None

    @property
    def spent_s(self) -> float:
        """Since the sweep began."""
        return self._clock() - self._begun_s

    def _race(self, phase: str, candidates: Sequence[Candidate], champion: Candidate) -> Candidate:
        """Halve the candidates until one is left; the champion stays unless that one seems better beyond the noise."""
        left = self._alive(candidates)
        if not left:
            return champion
        for length in lengths():
            seconds = self.effort.seconds * length
            runners = [*left, *([champion] if champion != self.present else [])]
            for group in groups(runners):
                if not self._has_time(len(group) + 1, seconds, self._finals_s):
                    break
                self._round(phase, group, seconds, self.present)
            left = self._ranked(left)
            if len(left) <= 2:
                break
            left = left[: math.ceil(len(left) / 2)]
        self.untried += [one for one in candidates if one not in self.trials]
        # Drop one that failed in a later phase.
        champion = champion if self._alive([champion]) else self.present
        margin = max(MIN_GAIN, self._noise())
        return left[0] if left and self._looks_better(left[0], champion, margin) else champion

    def _round(self, phase: str, candidates: Sequence[Candidate], seconds: int, reference: Candidate) -> None:
        """Measure the reference and the candidates, every other time backwards: a steady drift then cancels."""
        self._number += 1
        order = [reference, *candidates]
        done = [self._attempt(phase, one, seconds, reference) for one in (order if self._number % 2 else order[::-1])]
        rounds = {one: found for one, found in done if found is not None}
        base = rounds[reference].measured.items_per_s
        for one in candidates:
            if one in rounds:
                rounds[one].ratio = rounds[one].measured.items_per_s / base
                self.after(self.trials[one])

    def _attempt(
        self, phase: str, candidate: Candidate, seconds: int, reference: Candidate
    ) -> tuple[Candidate, Round | None]:
        trial = self.trials.setdefault(candidate, Trial(candidate))
        begun_s = self._clock()
        try:
            found = Round(phase, self._number, seconds, self._measure(candidate, seconds))
        except TrialFailedError as error:
            trial.failed = str(error)
            self.after(trial)
            if candidate == reference:
                raise TrialFailedError(
                    f"what all others are compared with cannot be measured: {error}; see with `tritonclip serve` and "
                    "`tritonclip bench` what is wrong with the repository, or with the load"
                ) from error
            return candidate, None
        self._overheads_s.append(self._clock() - begun_s - seconds)
        trial.rounds.append(found)
        if candidate == reference:
            self.after(trial)
        return candidate, found

    def _alive(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        return [one for one in candidates if one not in self.trials or not self.trials[one].failed]

    def _ranked(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Those that were measured and did not fail, the best first."""
        measured = [one for one in self._alive(candidates) if one in self.trials]
        return sorted(measured, key=self._rank, reverse=True)

    def _rank(self, candidate: Candidate) -> tuple[bool, float]:
        meets = self._meets(candidate)
        return meets, self.trials[candidate].score() if meets else -self._p99_ms(candidate)

    def _p99_ms(self, candidate: Candidate, phase: str = "") -> float:
        rounds = self.trials[candidate].rounds
        return statistics.median(one.measured.p99_ms for one in rounds if not phase or one.phase == phase)

    def _meets(self, candidate: Candidate, phase: str = "") -> bool:
        return self._p99_ms(candidate, phase) <= self.effort.within_p99_ms

    def _looks_better(self, candidate: Candidate, other: Candidate, margin: float) -> bool:
        if self._meets(candidate) != (other not in self.trials or self._meets(other)):
            return self._meets(candidate)
        return self.trials[candidate].score() > (1 + margin) * (
            self.trials[other].score() if other in self.trials else 1.0
        )

    def _is_better(self, candidate: Candidate, reference: Candidate, phase: str) -> bool:
        ratio = self.ratio(candidate, phase)
        if ratio is None or ratio.n < MIN_ROUNDS:
            return False
        if self._misses_once(candidate, phase):
            return False
        if not self._meets(reference, phase):
            return ratio.n >= OBJECTIVE_ROUNDS
        return ratio.mean >= 1 + MIN_GAIN and ratio.mean - (ratio.half_width or 0.0) > 1

    def _is_settled(self, candidate: Candidate, reference: Candidate, phase: str) -> bool:
        """Whether more rounds would change nothing."""
        ratio = self.ratio(candidate, phase)
        if ratio is None or ratio.n < MIN_ROUNDS:
            return False
        half_width = ratio.half_width or 0.0
        if self._misses_once(candidate, phase):
            return True
        if not self._meets(reference, phase):
            return ratio.n >= OBJECTIVE_ROUNDS
        if ratio.mean + half_width < 1 + MIN_GAIN:
            return True
        return self._is_better(candidate, reference, phase) and ratio.mean - 1 > EARLY * half_width

    def _misses_once(self, candidate: Candidate, phase: str) -> bool:
        rounds = [one for one in self.trials[candidate].rounds if one.phase == phase]
        return any(one.measured.p99_ms > self.effort.within_p99_ms for one in rounds)

    def _final_mean(self, candidate: Candidate, phase: str) -> float:
        ratio = self.ratio(candidate, phase)
        return 0.0 if ratio is None else ratio.mean

    def _rounds_left(self, candidate: Candidate, phase: str) -> bool:
        ratio = self.ratio(candidate, phase)
        return ratio is None or ratio.n < self.effort.rounds

    def _noise(self, unknown: float = 0.0) -> float:
        """How far two runs of the present settings lie apart, as a share: what one ratio may be off."""
        present = self.trials.get(self.present)
        rates = [one.measured.items_per_s for one in present.rounds] if present else []
        steps = [math.log(after / before) for before, after in itertools.pairwise(rates)]
        return math.sqrt(statistics.fmean(step**2 for step in steps)) if steps else unknown

    @property
    def _finals_s(self) -> float:
        """What the shortest final takes, and the exports after it."""
        return self._cost_s(MIN_ROUNDS * (FINALISTS + 1), self.effort.seconds) + self._exports_s

    @property
    def _exports_s(self) -> float:
        runs = MIN_ROUNDS * (self._exports + 1) if self._exports else 0
        return self._cost_s(runs, self.effort.seconds)

    def _cost_s(self, runs: int, seconds: int) -> float:
        overhead_s = statistics.fmean(self._overheads_s or [OVERHEAD_S + self.effort.warmup_s])
        return runs * (overhead_s + seconds)

    def _has_time(self, runs: int, seconds: int, kept_s: float) -> bool:
        return self.spent_s + self._cost_s(runs, seconds) + kept_s <= self.effort.budget_s
