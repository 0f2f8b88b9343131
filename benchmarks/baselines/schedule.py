"""What is measured when."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import psutil

from baselines.patterns import BATCHED_WINDOW, OURS, is_measured, measured_as
from baselines.sides import Load
from tritonclip_bench.results.repeats import SEED_STEP

# A machine that is busier than this while nobody asks anything gives no ratio to believe.
QUIET_SHARE = 0.1
# Of a server that still computes for callers who left; and how long it is watched at a time.
SETTLED_S, LOOK_S = 30.0, 0.5


def settle() -> bool:
    """Wait until what was asked before is done, which the next side would pay for; whether that came in time."""
    end_s = time.monotonic() + SETTLED_S
    while psutil.cpu_percent(interval=LOOK_S) / 100 > QUIET_SHARE:
        if time.monotonic() > end_s:
            return False
    return True


def schedule(args: argparse.Namespace, number: int) -> Iterator[tuple[str, Load]]:
    """What round `number`, from 1, measures: sides in turn for each pattern, in even rounds backwards.

    All sides of a pattern get the same texts, and no texts come twice: tritonclip's server caches their embeddings.
    """
    done = set()
    cells = [(scenario, pattern) for scenario in args.scenarios for pattern in args.patterns]
    for index, (scenario, pattern) in enumerate(cells):
        sides = [side for side in (OURS, *args.sides) if is_measured(side, pattern)]
        for side in sides if number % 2 else reversed(sides):
            shape = measured_as(side, pattern)
            if (side, scenario, shape) in done:
                continue
            done.add((side, scenario, shape))
            seconds = args.seconds * (BATCHED_WINDOW if shape.batch > 1 else 1)
            yield side, Load(scenario, shape, seconds, args.warmup, (number * len(cells) + index) * SEED_STEP)
