"""Times two ways of the same work turn by turn, so that whatever else the machine does hits both alike."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tritonclip_bench.files import write_json
from tritonclip_bench.machine import describe_machine

RESULTS = Path(__file__).parent / "results"


def alternate(
    theirs: Callable[[], Any], ours: Callable[[], Any], rounds: int, calls_a_turn: int = 1
) -> dict[str, float]:
    """Median seconds of a call of each, in turns of `calls_a_turn`, and the ratios of medians and of minima.

    Turns of one call let each side find the caches full of the other's data, which no server does; turns of several
    calls let each side work as a process that does nothing else.
    """
    theirs()
    ours()
    pairs = [(_seconds(theirs, calls_a_turn), _seconds(ours, calls_a_turn)) for _ in range(rounds)]
    theirs_s, ours_s = (statistics.median(column) for column in zip(*pairs, strict=True))
    return {
        "open_clip_s": theirs_s,
        "tritonclip_s": ours_s,
        "ratio": theirs_s / ours_s,
        "ratio_of_least": min(a for a, _ in pairs) / min(b for _, b in pairs),
    }


def _seconds(work: Callable[[], Any], calls: int) -> float:
    begin = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - begin) / calls


def environment(packages: tuple[str, ...]) -> dict[str, object]:
    """What the figures depend on: the machine, Python and the packages that do the work."""
    return {**describe_machine(), "python": platform.python_version(), **{name: version(name) for name in packages}}


def use_one_core() -> None:
    """Keep this process on the first core it may use."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def save(name: str, report: dict[str, Any]) -> Path:
    """Keep a report below `results/` as JSON."""
    path = RESULTS / f"{name}.json"
    write_json(path, report)
    return path
