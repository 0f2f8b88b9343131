"""The highest rate that a server sustains within a service-level objective: doubled until it fails, then bisected."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tritonclip_bench.results.report import CLIENT_BOUND_CORES, LATE_MS, kept_up

# How close the failing rate has to be to the sustained one.
TOLERANCE = 0.05
# Requests of which one may be slower than the 99th percentile; of fewer it is the slowest.
ENOUGH_REQUESTS = 100
# Late requests explain a missed objective where they were late by this share of it: lateness counts as time.
LATE_SHARE = 0.1
# No rate is asked for more than this many times in a row in one direction.
MOST_STEPS = 20


@dataclass(frozen=True)
class Objective:
    """What has to hold for a rate to be sustained.

    Attributes:
        p99_ms: of all requests that were due, answered or not.
        max_error: the share of requests that may fail, 0 to 1.
    """

    p99_ms: float
    max_error: float


@dataclass(frozen=True)
class Trial:
    """One rate that was tried.

    Attributes:
        rate: requests a second that were asked for.
        offered, answered: requests a second that were due, and that were answered rightly.
        items_per_s: of the answered ones.
        p99_ms: None where nothing was answered.
        error: the share of failed requests.
        verdict: "sustained"; "failed"; "generator": the load generator was the limit, and the server is unjudged; or
            "broken": the trial did not go to its end.
        reason: why it is not sustained.
        p50_ms, p95_ms: as `p99_ms`.
        results: everything that was measured (`Recorder.results`).
    """

    rate: float
    offered: float
    answered: float
    items_per_s: float
    p99_ms: float | None
    error: float
    verdict: str
    reason: str
    p50_ms: float | None = None
    p95_ms: float | None = None
    results: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_good(self) -> bool:
        """Whether the rate was sustained."""
        return self.verdict == "sustained"

    def doubts(self) -> list[str]:
        """Why the percentiles are not to be believed."""
        count = self.results["total"]["requests"]
        if count >= ENOUGH_REQUESTS:
            return []
        return [
            f"p99 is not known: of the {count} requests at {self.rate:.1f} a second it is the slowest one; "
            f"{ENOUGH_REQUESTS} are needed (--duration {math.ceil(ENOUGH_REQUESTS / self.rate)}s)"
        ]


@dataclass
class Search:
    """All trials in their order, and what came of them.

    Attributes:
        broken: why the search is not whole; None where it went to its end.
        impossible: why nothing needs to be tried; None where that is not known.
    """

    objective: Objective
    trials: list[Trial] = field(default_factory=list)
    broken: str | None = None
    impossible: str | None = None

    def begin(self, alone: Mapping[str, Any]) -> None:
        """Take what a single caller measured (`Recorder.results`): where it misses the objective, all do."""
        total, within = alone["total"], f"p99 <= {self.objective.p99_ms:g} ms"
        if not total["requests"]:
            self.impossible = f"no rate meets {within}: of a single caller's requests none was answered rightly"
        elif total["latency_ms"]["p99"] > self.objective.p99_ms:
            took = f"{total['latency_ms']['p99']:.1f} ms"
            self.impossible = f"no rate meets {within}: p99 of a single caller, one request at a time, is {took}"

    def sustained(self) -> Trial | None:
        """The highest rate that was never found to fail, at it or below it."""
        least = self._least_failed()
        good = [trial for trial in self.trials if trial.is_good and trial.rate < least]
        return max(good, key=lambda trial: trial.rate, default=None)

    def notes(self) -> list[str]:
        """What a reader must know before believing the rate."""
        found = [self.impossible] if self.impossible else []
        least = self._least_failed()
        above = [trial.rate for trial in self.trials if trial.is_good and trial.rate > least]
        if above:
            found.append(
                f"not monotonic: {least:.1f} requests/s failed and {max(above):.1f} did not; something else uses the "
                "machine, or the trials are too short (--duration)"
            )
        best = self.sustained()
        if best is not None:
            found += best.doubts()
        limited = [trial.rate for trial in self.trials if trial.verdict == "generator" and trial.rate < least]
        if limited:
            found.append(
                f"the load generator was the limit before the server, from {min(limited):.1f} requests/s on: "
                "the server may sustain more; spread the load over processes or machines"
            )
        return found

    def _least_failed(self) -> float:
        return min((trial.rate for trial in self.trials if trial.verdict == "failed"), default=math.inf)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        best = self.sustained()
        return {
            "objective": asdict(self.objective),
            "sustained": best and {name: value for name, value in asdict(best).items() if name != "results"},
            "trials": [asdict(trial) for trial in self.trials],
            "notes": self.notes(),
            "broken": self.broken,
        }


def judge(rate: float, results: Mapping[str, Any], objective: Objective) -> Trial:
    """What `results` (of `Recorder.results`, in an open loop at `rate`) say of the objective."""
    total, loop = results["total"], results["open_loop"]
    asked = total["requests"] + total["failures"] + total["unanswered"]
    error = total["failures"] / asked if asked else 0.0
    answered, offered = total["requests_per_s"], loop["offered_per_s"]
    p50, p95, p99 = (total["latency_ms"] and total["latency_ms"][name] for name in ("p50", "p95", "p99"))
    verdict, reason = "sustained", ""
    if results.get("broken"):
        verdict, reason = "broken", results["broken"]
    elif results["client_cpu_cores"] > CLIENT_BOUND_CORES:
        verdict, reason = "generator", f"{results['client_cpu_cores']:.2f} of a core used"
    elif p99 is None or error > objective.max_error:
        verdict, reason = "failed", f"{error:.2%} of the requests failed"
    elif p99 > objective.p99_ms and loop["lag_ms_p99"] > max(LATE_MS, LATE_SHARE * objective.p99_ms):
        verdict, reason = "generator", f"p99 is {p99:.1f} ms, 1 of 100 sent {loop['lag_ms_p99']:.0f} ms late"
    elif p99 > objective.p99_ms:
        verdict, reason = "failed", f"p99 is {p99:.1f} ms"
    elif not kept_up(results):
        verdict, reason = "failed", f"{answered:.1f} of {offered:.1f} were answered a second"
    kept = {name: value for name, value in results.items() if name != "images"}
    return Trial(rate, offered, answered, total["items_per_s"], p99, error, verdict, reason, p50, p95, kept)


def search(measure: Callable[[float], Trial], begin: float, found: Search) -> Iterator[Trial]:
    """Look for the highest sustained rate; yields each trial as it is noted in `found`, so that nothing is lost.

    From `begin` the rate doubles until a trial is not sustained, or halves until one is; the gap is bisected until the
    two are within TOLERANCE. The rate that was found is tried once more: where that fails, the search goes on below it,
    MOST_STEPS times at most, because a machine that became slower meanwhile may sustain nothing any more.
    """
    low, high, rate = 0.0, 0.0, begin

    def attempt(rate: float) -> Trial:
        found.trials.append(measure(rate))
        return found.trials[-1]

    for _ in range(MOST_STEPS):
        yield (trial := attempt(rate))
        low, high = (rate, high) if trial.is_good else (low, rate)
        if (low and high) or (high and rate < 1):
            break
        rate = rate * 2 if trial.is_good else rate / 2
    for _ in range(MOST_STEPS if low and high else 0):
        while high > low * (1 + TOLERANCE):
            rate = (low + high) / 2
            yield (trial := attempt(rate))
            low, high = (rate, high) if trial.is_good else (low, rate)
        yield (trial := attempt(low))
        if trial.is_good:
            return
        low, high = low / (1 + 2 * TOLERANCE), low
