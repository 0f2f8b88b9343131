"""`tritonclip bench cost`: cost against latency over all runs, the limits of GPUs, and the table of prices."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritonclip_bench.traffic.options import add_price_arguments

if TYPE_CHECKING:
    from tritonclip_bench.cost.pareto import Run
    from tritonclip_bench.cost.prices import Price
    from tritonclip_bench.gpu.limits import Limit, Reached, Work
    from tritonclip_bench.records import Record

HELP = "compare runs by cost and latency (Pareto), price them anew, or show what GPUs could do at most; needs no server"
RUN_COLUMNS = ("run", "items/s", "p99 ms", "per million", "95 %", "priced as", "Pareto front")
LIMIT_COLUMNS = ("instance", "vCPU", "GPUs", "TFLOPS", "items/s", "alone", "full batch", "per million", "note")
REACHED_COLUMNS = ("run", "items/s", "limit", "share", "")
PRICE_COLUMNS = ("instance", "an hour", "GPUs", "vCPU", "GiB", "kind", "where", "date", "")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("records", type=Path, nargs="*", metavar="RECORD", help="what --json of other benchmarks wrote")
    add_price_arguments(parser)
    parser.add_argument(
        "--roofline",
        action="store_true",
        help="what each GPU of the price table could do at most, and the share reached",
    )
    parser.add_argument(
        "--model", metavar="NAME", help="the registry's name of the model; default: the one that the record names"
    )
    parser.add_argument("--list", action="store_true", help="show the prices that --instance knows")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all of it here")


def run(args: argparse.Namespace) -> int:
    """Read, compare, print; 1 where no run can be compared, else 0."""
    from tritonclip_bench.cost.price_table import asked_price, price_table
    from tritonclip_bench.errors import BenchError
    from tritonclip_bench.files import check_writable, write_json
    from tritonclip_bench.records import read_loads

    if not (args.records or args.list or (args.roofline and args.model)):
        raise BenchError("nothing to show; give a RECORD, or --list, or --roofline with --model NAME")
    price = asked_price(args)
    if args.json is not None:
        check_writable(args.json)
    table = price_table(args.prices)
    loads = read_loads(args.records)
    found: dict[str, Any] = {"schema": 1, "kind": "cost"}
    parts: list[str] = []
    if args.list:
        found["prices"] = {name: one.to_dict() for name, one in table.items()}
        parts.append(_prices(list(table.values())))
    compared = True
    if loads:
        compared = _compare(loads, price, found, parts)
    if args.roofline:
        _rooflines(loads, args.model, price, list(table.values()), found, parts)
    if args.json is not None:
        write_json(args.json, found)
    print("\n\n".join(parts))
    return 0 if compared else 1


def _compare(loads: Sequence[Record], price: Price | None, found: dict[str, Any], parts: list[str]) -> bool:
    from tritonclip_bench.cost.pareto import dominators, notes, run_of, verdicts
    from tritonclip_client.table import format_table

    runs = [run_of(load, price) for load in loads]
    told = zip(runs, verdicts(runs), dominators(runs), strict=True)
    found["runs"] = [
        {**run.to_dict(), "pareto": verdict, "on_front": by == [], "dominated_by": by} for run, verdict, by in told
    ]
    found["warnings"] = notes(runs)
    rows = [_run_row(run, verdict) for run, verdict in zip(runs, verdicts(runs), strict=True)]
    parts.append("\n".join([format_table(RUN_COLUMNS, rows), *(f"warning: {note}" for note in found["warnings"])]))
    return any(run.point for run in runs)


def _run_row(run: Run, verdict: str) -> tuple[str, ...]:
    from tritonclip_bench.cost.dollars import hourly, money
    from tritonclip_bench.cost.prices import Price

    dollars = within = priced = "-"
    if run.cost is not None:
        currency, price = run.cost["currency"], Price.from_dict(run.cost["price"])
        dollars = f"{money(run.cost['dollars_per_million'], currency)} {run.item}"
        priced = f"{price.name or 'given'}, {hourly(price)}/h"
        if run.cost["spread"]:
            low, high = run.cost["spread"]["dollars_per_million"]
            within = f"{money(low, currency)} to {'?' if high is None else money(high, currency)}"
    numbers = ("-" if value is None else f"{value:.1f}" for value in (run.items_per_s, run.p99_ms))
    return (run.label, *numbers, dollars, within, priced, verdict)


def _rooflines(
    loads: Sequence[Record],
    model: str | None,
    price: Price | None,
    prices: Sequence[Price],
    found: dict[str, Any],
    parts: list[str],
) -> None:
    """One table of limits for each kind of work among the runs, and what share of it the runs reached."""
    from dataclasses import asdict

    from tritonclip_bench import records
    from tritonclip_bench.cost.prices import Price
    from tritonclip_bench.gpu import limits
    from tritonclip_client.table import format_table
    from tritonclip_export.registry.catalog import find_model

    works = [_work(load, model) for load in loads]
    if not loads:
        works = [work for scenario in ("image", "text") if (work := limits.work(find_model(str(model)), scenario))]
    found["limits"] = {}
    for work in dict.fromkeys(work for work in works if isinstance(work, limits.Work)):
        rows = limits.limits(work, prices)
        found["limits"][work.name] = [asdict(row) for row in rows]
        heading = f"at most, {work.name}, {work.item.flops / 1e9:.2f} GFLOPs, dense float16, the encoder alone:"
        parts.append(f"{heading}\n\n{format_table(LIMIT_COLUMNS, [_limit_row(row) for row in rows])}")
    if loads:
        own = [records.section(load, "cost", "price") for load in loads]
        priced = [price or (Price.from_dict(one) if one else None) for one in own]
        shares = [limits.reached(*one) for one in zip(loads, works, priced, strict=True)]
        found["reached"] = [asdict(one) for one in shares]
        parts.append(format_table(REACHED_COLUMNS, [_reached_row(one) for one in shares]))


def _work(load: Record, model: str | None) -> Work | str:
    """What is asked for an item of a record, or why that is unknown: then the other records still have their limits."""
    from tritonclip_bench.errors import BenchError
    from tritonclip_bench.gpu import limits

    try:
        return limits.work_of(load, model)
    except BenchError as error:
        return str(error)


def _limit_row(row: Limit) -> tuple[str, ...]:
    from tritonclip_bench.cost.dollars import money

    hardware = (str(row.price.name), str(row.price.vcpu or "-"), f"{row.price.gpus} x {row.price.gpu}")
    if row.items_per_s is None or row.alone_per_s is None or row.dollars_per_million is None:
        return (*hardware, "-", "-", "-", "-", "-", row.note)
    dollars = money(row.dollars_per_million, row.price.currency)
    rates = (f"{row.tflops:g}", f"{row.items_per_s:.0f}", f"{row.alone_per_s:.0f}")
    full = "none" if row.full_batch is None else str(row.full_batch)
    return (*hardware, *rates, full, dollars, row.note)


def _reached_row(one: Reached) -> tuple[str, ...]:
    limit = "-" if one.limit is None else f"{one.limit:.0f}"
    return (one.label, f"{one.items_per_s:.1f}", limit, "-" if one.share is None else f"{one.share:.1%}", one.note)


def _prices(prices: Sequence[Price]) -> str:
    from tritonclip_bench.cost.dollars import hourly
    from tritonclip_bench.cost.price_table import today
    from tritonclip_client.table import format_table

    rows = [
        (
            str(price.name),
            hourly(price),
            f"{price.gpus} x {price.gpu}" if price.gpu else "-",
            *("-" if value is None else f"{value:g}" for value in (price.vcpu, price.memory_gib)),
            price.kind or "-",
            f"{price.provider} {price.region}",
            price.date,
            "doubtful" if price.stale else "old" if price.doubts(today()) else "",
        )
        for price in prices
    ]
    sources = "\n".join(
        f"{origin}: {source}"
        for origin, source in dict.fromkeys((f"{price.provider}, {price.date}", price.source) for price in prices)
    )
    doubts = "\n".join(f"{price.name}: {price.stale}" for price in prices if price.stale)
    return f"{format_table(PRICE_COLUMNS, rows)}\n\nsources\n{sources}\n\ndoubtful\n{doubts}"
