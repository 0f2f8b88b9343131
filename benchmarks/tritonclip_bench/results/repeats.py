"""Repeats a whole measured run, a fixed number of times or until the throughput is known closely enough."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tritonclip_bench.cost.prices import Price
from tritonclip_bench.errors import BenchError
from tritonclip_bench.load.loadrun import INTERRUPTED, LoadPlan, run_load, was_interrupted
from tritonclip_bench.results.report import make_report
from tritonclip_bench.results.spread import Spread, spread, whole_runs
from tritonclip_bench.server.endpoint import ServerInfo
from tritonclip_client.main import EXIT_INTERRUPTED

# Runs begin more texts apart than a run sends, so that the response cache knows no text of a run from an earlier one.
SEED_STEP = 1_000_003
# Why a series of runs is broken where a run that had measured nothing was interrupted.
BETWEEN_RUNS = f"{INTERRUPTED} between two runs"

Results = dict[str, Any]


@dataclass(frozen=True)
class RunLength:
    """How often a run is repeated.

    Attributes:
        least, most: runs.
        bound: repeating ends when the 95 % half-width of items/s, over its mean, is at most this; None: after `most`.
    """

    least: int = 1
    most: int = 1
    bound: float | None = None

    def is_enough(self, found: Spread) -> bool:
        """Whether no further run is needed. Where nothing is served, more runs tell nothing more."""
        return found.n >= self.most or (found.n >= self.least and (self.is_met(found) or not found.mean))

    def is_met(self, found: Spread) -> bool:
        """Whether the throughput is known as closely as was asked; always, where nothing was asked."""
        return self.bound is None or (found.relative is not None and found.relative <= self.bound)


@dataclass
class Runs:
    """The runs so far.

    Attributes:
        results: of each run, in their order.
        broken: why there are fewer than were wanted, or the last is not whole; None where all is well.
    """

    results: list[Results] = field(default_factory=list)
    broken: str | None = None

    def typical(self) -> Mapping[str, Any]:
        """The run whose items/s is the median: a real run, of two in the middle the slower one."""
        ordered = sorted(whole_runs(self.results), key=_items_per_s)
        return ordered[(len(ordered) - 1) // 2]

    def throughput(self) -> Spread:
        """The spread of items/s."""
        return spread([_items_per_s(results) for results in whole_runs(self.results)])


def another(plan: LoadPlan, number: int) -> LoadPlan:
    """`plan` for its run `number`, from 0: the same, with texts that no earlier run has sent."""
    return replace(plan, seed=plan.seed + number * SEED_STEP)


def repeat(measure: Callable[[int], Results], length: RunLength, after: Callable[[Runs], None]) -> Runs:
    """Measure until `length` is reached, or a run breaks; what was measured before is kept.

    Args:
        measure: one run, told its number, from 0.
        after: told the runs after each one.

    Raises:
        BenchError, KeyboardInterrupt: the very first run gave nothing at all.
    """
    runs = Runs()
    try:
        while True:
            runs.results.append(measure(len(runs.results)))
            runs.broken = runs.results[-1].get("broken")
            after(runs)
            if runs.broken or length.is_enough(runs.throughput()):
                return runs
    except (BenchError, KeyboardInterrupt) as error:
        if not runs.results:
            raise
        runs.broken = runs.broken or str(error) or BETWEEN_RUNS
        after(runs)
        return runs


def measure_record(
    plan: LoadPlan,
    server: ServerInfo,
    price: Price | None,
    length: RunLength,
    *,
    label: str | None = None,
    progress: bool = False,
    save: Callable[[dict[str, Any]], None] = lambda record: None,
) -> dict[str, Any]:
    """Run `plan` as often as `length` says; the record of kind "load".

    Args:
        progress: show lines with the current rate on stderr.
        save: given the record after every run.

    Raises:
        BenchError, KeyboardInterrupt: the very first run gave nothing at all.
    """
    record: dict[str, Any] = {}

    def after(runs: Runs) -> None:
        record.clear()
        record.update(load_record(plan, server, price, runs, length, label=label))
        if length.most > 1:
            print(f"  {_news(runs)}", file=sys.stderr, flush=True)
        save(record)

    repeat(lambda number: run_load(another(plan, number), progress=progress), length, after)
    return record


def load_record(
    plan: LoadPlan, server: ServerInfo, price: Price | None, runs: Runs, length: RunLength, *, label: str | None = None
) -> dict[str, Any]:
    """The record of kind "load" of `runs`, at least one."""
    record = make_report(
        plan,
        server,
        runs.typical(),
        price,
        label=label,
        repeats=runs.results,
        broken=runs.broken,
    )
    record["warnings"] += unmet(length, runs.throughput())
    return record


def is_good(record: Mapping[str, Any]) -> bool:
    """Whether every run of a load record went to its end and no request failed."""
    totals = [results["total"] for results in record["repeats"]]
    return record["broken"] is None and all(total["requests"] and not total["failures"] for total in totals)


def exit_status(broken: str | None, is_well: bool) -> int:
    """A command's: 0 where all is well, 130 where somebody ended it, else 1."""
    if was_interrupted(broken):
        return EXIT_INTERRUPTED
    return 0 if is_well and not broken else 1


def _news(runs: Runs) -> str:
    found = runs.throughput()
    relative = "" if found.relative is None else f", ± {found.relative:.1%} so far"
    return f"run {len(runs.results)}: {_items_per_s(runs.results[-1]):.1f} items/s{relative}"


def unmet(length: RunLength, found: Spread) -> list[str]:
    """What a reader must know where the runs do not agree as closely as was asked."""
    if length.is_met(found):
        return []
    known = "unknown" if found.relative is None else f"{found.relative:.1%}"
    return [
        f"the spread of items/s is {known} after {found.n} runs, and {length.bound:.1%} was asked for; "
        "give a longer --duration or more --max-runs, or look for what else uses the machine"
    ]


def _items_per_s(results: Mapping[str, Any]) -> float:
    return float(results["total"]["items_per_s"])
