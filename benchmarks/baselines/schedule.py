"""What is measured when."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from baselines.patterns import BATCHED_WINDOW, OURS, is_measured, measured_as
from baselines.sides import Load
from tritonclip_bench.repeats import SEED_STEP


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
