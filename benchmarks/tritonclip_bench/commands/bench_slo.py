"""`tritonclip bench slo`: how many requests a second a server takes before its slowest answers become too slow."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tritonclip_bench.cli_types import count, positive_number, positive_seconds, share
from tritonclip_bench.results.repeat_options import add_label_argument
from tritonclip_bench.traffic.options import add_load_arguments

if TYPE_CHECKING:
    from tritonclip_bench.cost.prices import Price
    from tritonclip_bench.load.loadrun import LoadPlan
    from tritonclip_bench.results.slo import Objective, Search, Trial
    from tritonclip_bench.server.endpoint import ServerInfo

HELP = "find the highest rate that a running server sustains within a 99th percentile, in an open loop"
COLUMNS = ("requests/s", "due", "answered", "items/s", "p99 ms", "failed", "")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--p99-ms", type=positive_number, required=True, metavar="MS", help="99 of 100 requests are answered within"
    )
    parser.add_argument(
        "--max-error", type=share, default=0.001, metavar="SHARE", help="requests that may fail, such as 0.1%% (0.1%%)"
    )
    parser.add_argument("--users", type=count("connections"), default=16, help="connections (16)")
    parser.add_argument(
        "--duration", type=positive_seconds, default=20, metavar="TIME", help="measured time of each rate (20s)"
    )
    add_load_arguments(parser)
    add_label_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Search and report; 1 where no rate meets the objective or the search broke, 130 after Ctrl-C, else 0."""
    from tritonclip_bench.files import saving
    from tritonclip_bench.load.planning import prepare
    from tritonclip_bench.results.page import save_page
    from tritonclip_bench.results.repeats import exit_status
    from tritonclip_bench.results.slo import Objective, Search

    # It is what is looked for.
    args.rate = None
    plan, server, price = prepare(args)
    found = Search(Objective(args.p99_ms, args.max_error))
    record: dict[str, Any] = {"label": args.label}
    _search(plan, server, price, found, record, saving(args.json))
    if found.trials:
        print(_render(found, record["cost"]))
        save_page(args.html, record)
    return exit_status(found.broken, found.sustained() is not None)


def _search(
    plan: LoadPlan,
    server: ServerInfo,
    price: Price | None,
    found: Search,
    record: dict[str, Any],
    save: Callable[[object], None],
) -> None:
    """Fill `found`, and `record`, which is saved after every trial; Ctrl-C, or a server that died, ends it early.

    Raises:
        BenchError, KeyboardInterrupt: the very first run gave nothing.
    """
    from tritonclip_bench.errors import BenchError, LoadError
    from tritonclip_bench.load.loadrun import run_load, was_interrupted
    from tritonclip_bench.results.repeats import BETWEEN_RUNS
    from tritonclip_bench.results.report import describe_run, run_cost
    from tritonclip_bench.results.slo import search

    alone = run_load(replace(plan, users=1, processes=1), progress=False)
    if was_interrupted(alone.get("broken")):
        raise KeyboardInterrupt
    if alone.get("broken"):
        raise LoadError(f"the run of a single caller broke: {alone['broken']}; nothing was searched")

    def note() -> None:
        best = found.sustained()
        record.update(
            {
                **describe_run(plan, server, alone["images"], kind="slo", label=record["label"]),
                **found.to_dict(),
                "alone": {name: value for name, value in alone.items() if name != "images"},
                "cost": run_cost(plan, best.items_per_s if best else 0.0, price),
            }
        )
        save(record)

    found.begin(alone)
    note()
    if found.impossible:
        print(f"{found.impossible}; give a longer --p99-ms, or a faster server", file=sys.stderr)
        return
    try:
        for trial in search(_trials(plan, found.objective), alone["total"]["requests_per_s"] / 2, found):
            print(
                f"  {trial.rate:8.1f} requests/s: {trial.verdict} {trial.reason}".rstrip(), file=sys.stderr, flush=True
            )
            if trial.verdict == "broken":
                found.broken = trial.reason
            note()
            if found.broken:
                return
    except (BenchError, KeyboardInterrupt) as error:
        found.broken = str(error) or BETWEEN_RUNS
        note()


def _trials(plan: LoadPlan, objective: Objective) -> Callable[[float], Trial]:
    """One trial after another, each with texts of its own."""
    from tritonclip_bench.load.loadrun import run_load
    from tritonclip_bench.results.repeats import another
    from tritonclip_bench.results.slo import judge
    from tritonclip_bench.server.endpoint import describe

    numbers = itertools.count(1)

    def measure(rate: float) -> Trial:
        measured = run_load(replace(another(plan, next(numbers)), rate=rate), progress=False)
        if measured["total"]["failures"] or not measured["total"]["requests"]:
            # A server that died in the trial is no server that is too slow.
            describe(plan.address)
        return judge(rate, measured, objective)

    return measure


def _render(found: Search, cost: dict[str, Any] | None) -> str:
    from tritonclip_bench.cost.dollars import line
    from tritonclip_client.table import format_table

    rows = [_row(trial) for trial in sorted(found.trials, key=lambda trial: trial.rate)]
    objective, best = found.objective, found.sustained()
    within = f"p99 <= {objective.p99_ms:g} ms and at most {objective.max_error:.2%} failed"
    if best is None:
        verdict = f"no rate was sustained with {within}"
    else:
        verdict = f"sustained with {within}: {best.rate:.1f} requests/s, {best.items_per_s:.1f} items/s"
    price = f"\n{line(cost)}" if cost else ""
    notes = "".join(f"\nwarning: {note}" for note in (*found.notes(), *(cost["warnings"] if cost else ())))
    broken = f"\nbroken: {found.broken}; the trials so far are above" if found.broken else ""
    return f"{format_table(COLUMNS, rows)}\n\n{verdict}{price}{notes}{broken}"


def _row(trial: Trial) -> tuple[str, ...]:
    rates = (f"{value:.1f}" for value in (trial.rate, trial.offered, trial.answered, trial.items_per_s))
    p99 = "-" if trial.p99_ms is None else f"{trial.p99_ms:.1f}"
    return (*rates, p99, f"{trial.error:.2%}", ": ".join(filter(None, (trial.verdict, trial.reason))))
