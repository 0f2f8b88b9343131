"""Twenty minutes of mixed traffic and kills: does anything grow?"""

from __future__ import annotations

import signal
import statistics
import time
from collections.abc import Iterator, Sequence
from functools import partial

from tritonclip_chaos.campaign import Campaign, Context
from tritonclip_chaos.campaigns._faults import MODEL_LIMIT_S, Stage
from tritonclip_chaos.records import Record, Sample
from tritonclip_chaos.slopes import Slope, slope

MINUTES, SHORT_MINUTES = 20.0, 0.25
KILL_EVERY_S = 20.0
# Medians of so many seconds are what slopes are fitted to: neighbours in time are alike, and would feign certainty.
WINDOW_S = 15.0
# The first part warms caches and pools, and is left out.
WARM_UP = 0.2
# Of the mean, that may be added over the whole run, as far as the data prove that anything was.
GROWTH = 0.05


def run(context: Context) -> Iterator[Record]:
    """Traffic, and every so often a kill of a process drawn by lot; of a server that is not ours, no kills."""
    seconds = 60 * (context.minutes or context.pick(MINUTES, SHORT_MINUTES))
    if context.address is not None:
        yield _without_kills(context, context.address, seconds)
        return
    chosen = context.draw("soak")
    with Stage(context, "soak", "--restart-limit", "1000") as stage:
        record = stage.case(f"{seconds / 60:.3g} minutes of mixed traffic and kills")
        names = sorted(stub.instance for stub in stage.server.stubs())
        began_s, samples, looks = time.monotonic(), [], []
        while time.monotonic() - began_s < seconds:
            time.sleep(min(context.pick(KILL_EVERY_S, 4.0), seconds))
            # Before the fault, which takes both away.
            name = chosen.choice(names)
            samples += stage.callers.samples()
            looks += stage.watch.looks
            stage.fault(record, partial(stage.signal, name, signal.SIGKILL), instance=name)
        first_s = began_s + WARM_UP * seconds
        _hold(record, "memory MB", slope(_medians([(one.at_s, one.pss_mb) for one in looks], first_s)), seconds)
        handles = [(one.at_s, float(one.handles)) for one in looks]
        _hold(record, "handles", slope(_medians(handles, first_s)), seconds)
        for kind in stage.callers.kinds:
            _hold(record, f"{kind} ms", slope(_medians(_latencies(samples, kind), first_s)), seconds)
        yield stage.judged(record, MODEL_LIMIT_S)
        yield stage.closed()


def _without_kills(context: Context, address: str, seconds: float) -> Record:
    record = Record("soak", f"{seconds / 60:.3g} minutes of mixed traffic", context.seed)
    context.say(f"soak: {record.case}")
    began_s = time.monotonic()
    with context.calling(address) as callers:
        time.sleep(seconds)
    samples = callers.take()
    record.add(samples)
    for kind in callers.kinds:
        points = _medians(_latencies(samples, kind), began_s + WARM_UP * seconds)
        _hold(record, f"{kind} ms", slope(points), seconds)
    record.check("wrong answers", record.wrong, 0)
    record.check("calls failed, refused or lost", record.failed + record.refused + record.lost, 0)
    return record


def _hold(record: Record, what: str, found: Slope | None, seconds: float) -> None:
    if found is None:
        return
    record.figures[f"{what}, mean"] = found.mean
    record.figures[f"{what}, change an hour"] = found.per_s * 3600
    record.figures[f"{what}, 95 % from"] = found.low_per_s * 3600
    record.figures[f"{what}, 95 % to"] = found.high_per_s * 3600
    record.check(f"growth of {what} that is certain, of the mean", found.low_per_s * seconds / found.mean, GROWTH)


def _latencies(samples: Sequence[Sample], kind: str) -> list[tuple[float, float]]:
    good = [one for one in samples if one.kind == kind and one.outcome == "answered"]
    return [(one.end_s, 1000 * (one.end_s - one.begin_s)) for one in good]


def _medians(points: Sequence[tuple[float, float]], first_s: float) -> list[tuple[float, float]]:
    """The median of every window of time, at its middle."""
    windows: dict[int, list[float]] = {}
    for at_s, value in points:
        if at_s >= first_s:
            windows.setdefault(int((at_s - first_s) / WINDOW_S), []).append(value)
    return [((number + 0.5) * WINDOW_S, statistics.median(values)) for number, values in sorted(windows.items())]


CAMPAIGN = Campaign(
    "soak",
    "twenty minutes of mixed traffic and kills: slopes of memory, handles and latency",
    run,
    own_server=False,
    about=f"A process drawn by lot is killed every {KILL_EVERY_S:g} s. Slopes are least squares over medians of "
    f"{WINDOW_S:g} s, after the first {WARM_UP:.0%} of the time, with confidence intervals of 95 %.",
)
