"""The throughput-latency curve: the same load in rising steps, each a whole measurement of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from tritonclip_bench.cost.prices import Price
from tritonclip_bench.errors import BenchError
from tritonclip_bench.load.loadrun import LoadPlan
from tritonclip_bench.results.repeats import BETWEEN_RUNS, RunLength, another, measure_record
from tritonclip_bench.results.report import describe_run
from tritonclip_bench.server.endpoint import ServerInfo
from tritonclip_client.table import format_table

COLUMNS = ("step", "items/s", "spread", "p50 ms", "p99 ms", "failures")


def measure_curve(
    plans: Sequence[LoadPlan],
    server: ServerInfo,
    price: Price | None,
    length: RunLength,
    curve: dict[str, Any],
    *,
    label: str | None,
    save: Callable[[dict[str, Any]], None],
) -> None:
    """Fill `curve`, a record of kind "curve": one load record a step. A step that breaks ends it.

    Args:
        save: given the curve after every run of every step.

    Raises:
        BenchError, KeyboardInterrupt: the very first run gave nothing at all.
    """
    for number, plan in enumerate(plans):
        done = list(curve.get("records", []))

        def keep(record: dict[str, Any], done: list[dict[str, Any]] = done, plan: LoadPlan = plan) -> None:
            if not curve:
                curve.update(describe_run(plan, server, record["plan"]["images"], kind="curve", label=label))
            curve.update(records=[*done, dict(record)], broken=record["broken"])
            save(curve)

        # No step sends texts that one before it has sent.
        fresh = another(plan, number * length.most)
        try:
            print(f"step {number + 1} of {len(plans)}: {name(plan)}", file=sys.stderr, flush=True)
            measure_record(fresh, server, price, length, label=name(plan), save=keep)
        except (BenchError, KeyboardInterrupt) as error:
            if not curve:
                raise
            curve["broken"] = str(error) or BETWEEN_RUNS
            save(curve)
        if curve["broken"]:
            return


def name(plan: LoadPlan) -> str:
    """What a step is called."""
    if plan.rate is not None:
        return f"{plan.rate:g} requests/s"
    return f"{plan.users} user{'s' if plan.users > 1 else ''}"


def render(curve: dict[str, Any]) -> str:
    """A table of the steps, with what a reader must know."""
    parts = [format_table(COLUMNS, [_row(record) for record in curve["records"]]), ""]
    notes = {warning: None for record in curve["records"] for warning in record["warnings"]}
    parts += [f"warning: {note}" for note in notes]
    if curve["broken"]:
        parts.append(f"broken: {curve['broken']}; what was measured before is above")
    return "\n".join(parts).rstrip()


def _row(record: dict[str, Any]) -> tuple[str, ...]:
    total, known = record["results"]["total"], record["spread"]["items_per_s"]
    times = total["latency_ms"] or {}
    relative = "-" if known["relative"] is None else f"± {known['relative']:.1%}"
    latencies = (f"{times[key]:.1f}" if times else "-" for key in ("p50", "p99"))
    return (record["label"], f"{known['mean']:.1f}", relative, *latencies, str(total["failures"]))
