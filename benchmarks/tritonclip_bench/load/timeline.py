"""What happened in each second of a measured window."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from tritonclip_bench.load.latency import summarize_ms
from tritonclip_bench.load.samples import Samples

# A window that is this much short of a second more is one second longer: timers are late, never early.
SLACK_S = 0.02


def timeline(samples: Samples, window_s: float) -> dict[str, list[Any]]:
    """By second of the window: requests that were due, answered and failed then, and the 99th percentile in ms.

    A request is due in one second and may be answered in another. `p99_ms` is of those whose time ended in the second,
    None where there is none. The part of a second at the window's end is left out.
    """
    seconds = max(1, int(window_s + SLACK_S))
    ends = np.floor(samples.end_s).astype(np.int64)
    due = np.floor(samples.due_s).astype(np.int64)
    answered, failed = samples.are("answered"), samples.are("failed")
    # What has no answer at the window's end has an age, and no end.
    timed = samples.are("timed") & (answered | failed)
    by_second = np.argsort(ends[timed], kind="stable")
    places = np.searchsorted(ends[timed][by_second], np.arange(seconds + 1))
    times = samples.latency_ms[timed][by_second]
    found = [summarize_ms(times[begin:end]) for begin, end in itertools.pairwise(places)]
    return {
        "second": list(range(seconds)),
        "due": _counts(due, seconds),
        "answered": _counts(ends[answered], seconds),
        "failed": _counts(ends[failed], seconds),
        "p99_ms": [summary and summary["p99"] for summary in found],
    }


def _counts(places: np.ndarray[Any, np.dtype[np.int64]], seconds: int) -> list[int]:
    inside = places[(places >= 0) & (places < seconds)]
    return [int(count) for count in np.bincount(inside, minlength=seconds)]
