"""The options of a run that is repeated."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from tritonclip_bench.cli_types import count, share
from tritonclip_bench.errors import BenchError

if TYPE_CHECKING:
    from tritonclip_bench.results.repeats import RunLength

MIN_RUNS, MAX_RUNS = 3, 10


def add_repeat_arguments(parser: argparse.ArgumentParser) -> None:
    """How often to measure, and what to call the result."""
    parser.add_argument(
        "--spread",
        type=share,
        metavar="SHARE",
        help="repeat the run until items/s is known within this, such as 2%% (95 %% confidence); default: one run",
    )
    parser.add_argument(
        "--min-runs", type=count("runs"), metavar="N", help=f"with --spread, N runs or more ({MIN_RUNS})"
    )
    parser.add_argument(
        "--max-runs", type=count("runs"), metavar="N", help=f"with --spread, N runs or fewer ({MAX_RUNS})"
    )
    parser.add_argument("--runs", type=count("runs"), metavar="N", help="measure N times")
    add_label_argument(parser)


def add_label_argument(parser: argparse.ArgumentParser) -> None:
    """What to call the result."""
    parser.add_argument("--label", metavar="NAME", help="what tables and pages call the result")


def run_length(args: argparse.Namespace) -> RunLength:
    """What the options of `add_repeat_arguments` ask for.

    Raises:
        BenchError: they contradict each other.
    """
    from tritonclip_bench.results.repeats import RunLength

    if args.spread is None:
        for given, option in ((args.min_runs, "--min-runs"), (args.max_runs, "--max-runs")):
            if given is not None:
                raise BenchError(
                    f"{option} {given} without --spread; give --spread too, or --runs N for a fixed number"
                )
        runs = args.runs or 1
        return RunLength(runs, runs)
    if args.runs is not None:
        raise BenchError(f"--spread and --runs {args.runs}; give one of them: a bound, or a fixed number of runs")
    if args.spread == 0:
        raise BenchError("--spread 0; no series of runs is exact; give a share above 0, such as 2%")
    most = args.max_runs or max(MAX_RUNS, args.min_runs or 0)
    least = args.min_runs or min(MIN_RUNS, most)
    if not 2 <= least <= most:
        raise BenchError(
            f"at least {least} and at most {most} runs; a spread takes 2 or more; "
            "give --min-runs from 2, and --max-runs not below it"
        )
    return RunLength(least, most, args.spread)
