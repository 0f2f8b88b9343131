"""`tritonclip bench slo`: how many requests a second a server takes before its slowest answers become too slow."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritonclip_bench.options import add_load_arguments, count, positive_number, positive_seconds

if TYPE_CHECKING:
    from tritonclip_bench.endpoint import ServerInfo
    from tritonclip_bench.loadrun import LoadPlan
    from tritonclip_bench.prices import Price
    from tritonclip_bench.slo import Search, Trial

HELP = "find the highest rate that a running server sustains within a 99th percentile, in an open loop"
COLUMNS = ("requests/s", "due", "answered", "items/s", "p99 ms", "failed", "")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--p99-ms", type=positive_number, required=True, metavar="MS", help="99 of 100 requests are answered within"
    )
    parser.add_argument(
        "--max-error", type=_share, default=0.001, metavar="SHARE", help="requests that may fail, such as 0.1%% (0.1%%)"
    )
    parser.add_argument("--users", type=count("connections"), default=16, help="connections (16)")
    parser.add_argument(
        "--duration", type=positive_seconds, default=20, metavar="TIME", help="measured time of each rate (20s)"
    )
    add_load_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Search and report; 1 where no rate meets the objective, else 0."""
    from tritonclip_bench.planning import prepare
    from tritonclip_bench.slo import Objective, Search

    # It is what is looked for.
    args.rate = None
    plan, server, price = prepare(args)
    found = Search(Objective(args.p99_ms, args.max_error))
    record: dict[str, Any] = {}
    try:
        _search(args.json, plan, server, price, found, record)
    finally:
        # After Ctrl-C, or a server that died, what was found so far.
        if found.trials:
            print(_render(found, record.get("cost")))
    return 0 if found.sustained() else 1


def _search(
    json: Path | None, plan: LoadPlan, server: ServerInfo, price: Price | None, found: Search, record: dict[str, Any]
) -> None:
    """Fill `found`, and `record`, which is written after every trial."""
    from tritonclip_bench.endpoint import describe
    from tritonclip_bench.files import write_json
    from tritonclip_bench.loadrun import run_load
    from tritonclip_bench.report import describe_run, run_cost
    from tritonclip_bench.slo import judge, search

    results = run_load(replace(plan, users=1), progress=False)
    alone = results["total"]
    if not alone["requests"] or alone["latency_ms"]["p99"] > found.objective.p99_ms:
        took = f"is {alone['latency_ms']['p99']:.1f} ms" if alone["requests"] else "is unknown: none was answered"
        print(f"no rate meets the objective: p99 of a single caller {took}", file=sys.stderr)
        return

    def measure(rate: float) -> Trial:
        measured = run_load(replace(plan, rate=rate), progress=False)
        if not measured["total"]["requests"]:
            # A server that died would fail at every rate.
            describe(plan.address)
        return judge(rate, measured, found.objective)

    for trial in search(measure, alone["requests_per_s"] / 2, found):
        best = found.sustained()
        print(f"  {trial.rate:8.1f} requests/s: {trial.verdict} {trial.reason}".rstrip(), file=sys.stderr, flush=True)
        items_per_s = best.items_per_s if best else 0.0
        record |= {
            **describe_run(plan, server, results["pictures"]),
            **found.to_dict(),
            "cost": run_cost(plan, items_per_s, price),
        }
        if json is not None:
            write_json(json, record)


def _render(found: Search, cost: dict[str, Any] | None) -> str:
    from tritonclip_bench.dollars import line
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
    return f"{format_table(COLUMNS, rows)}\n\n{verdict}{price}{notes}"


def _row(trial: Trial) -> tuple[str, ...]:
    rates = (f"{value:.1f}" for value in (trial.rate, trial.offered, trial.answered, trial.items_per_s))
    p99 = "-" if trial.p99_ms is None else f"{trial.p99_ms:.1f}"
    return (*rates, p99, f"{trial.error:.2%}", ": ".join(filter(None, (trial.verdict, trial.reason))))


def _share(text: str) -> float:
    """A share of 0 to 1, or per cent."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} given; give a share from 0 to 1, or per cent, such as 0.1%")
    return share
