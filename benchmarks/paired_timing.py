"""Times two ways of the same work turn by turn, so that whatever else the machine does hits both alike."""

from __future__ import annotations

import os
import platform
import statistics
import sys
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


def in_turn(sides: dict[str, Callable[[], float]], rounds: int, news: str) -> dict[str, list[float]]:
    """Measure all sides in every round, every other round backwards; what each gave, round by round.

    Args:
        news: told after each measurement, with its side and what it gave put into the braces.
    """
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(1, rounds + 1):
        for name in list(sides) if number % 2 else reversed(sides):
            rates[name].append(sides[name]())
            print(f"round {number} of {rounds}: {news.format(name, rates[name][-1])}", file=sys.stderr)
    return rates


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
