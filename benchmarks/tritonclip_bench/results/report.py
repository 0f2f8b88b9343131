"""The report of a load test: a JSON record that can be repeated, and the same as text for people."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

from tritonclip_bench.cost.dollars import Machine, cost
from tritonclip_bench.cost.dollars import line as cost_line
from tritonclip_bench.cost.prices import Price
from tritonclip_bench.load.loadrun import LoadPlan
from tritonclip_bench.machine import describe_machine, describe_versions
from tritonclip_bench.results.spread import spreads
from tritonclip_bench.server import stages, stages_text
from tritonclip_bench.server.endpoint import ServerInfo
from tritonclip_bench.traffic.scenarios import SCENARIOS, item_of, parse_mix
from tritonclip_client.options import is_loopback
from tritonclip_client.table import format_table
from tritonclip_export.local_gpu import visible_gpus
from tritonclip_export.settings import PYTHON

SCHEMA = 2
# One Python process cannot use much more than one core; above this share it may hold the server back.
CLIENT_BOUND_CORES = 0.8

# Less than this share of the offered requests answered, and these few: a queue grows.
KEPT_UP, AT_THE_ENDS = 0.95, 3
# Of a request's sending, behind the moment when it was due.
LATE_MS = 20.0

COLUMNS = ("", "items/s", "requests/s", "p50 ms", "p95 ms", "p99 ms", "max ms", "failures")


def make_report(
    plan: LoadPlan,
    server: ServerInfo,
    results: Mapping[str, Any],
    price: Price | None,
    *,
    label: str | None = None,
    repeats: Sequence[Mapping[str, Any]] = (),
    broken: str | None = None,
) -> dict[str, Any]:
    """The record of kind "load": everything that is needed to read the result later, and to repeat it.

    Args:
        results: of the run that stands for all of them.
        label: what tables call the result.
        repeats: the results of every run, where `results` is not the only one.
        broken: why the measurement is not whole.
    """
    every = repeats or [results]
    spread = spreads(every)
    found = run_cost(plan, results["total"]["items_per_s"], price, spread["items_per_s"])
    told = [warning for one in every for warning in warnings(one)] + (found["warnings"] if found else [])
    return {
        **describe_run(plan, server, results["images"], kind="load", label=label),
        "results": _told(results, server),
        "repeats": [_told(one, server) for one in every],
        "spread": spread,
        "cost": found,
        "warnings": list(dict.fromkeys(told)),
        "broken": broken or results.get("broken"),
    }


def _told(results: Mapping[str, Any], server: ServerInfo) -> dict[str, Any]:
    told = {name: value for name, value in results.items() if name != "images"}
    if server.spec.runtime == PYTHON and "stages" in told:
        told["stages"] = stages.with_late_answers(told["stages"])
    return told


def run_cost(
    plan: LoadPlan, items_per_s: float, price: Price | None, spread: Mapping[str, Any] | None = None
) -> dict[str, Any] | None:
    """`dollars.cost` of a rate that was just measured with `plan`, beside what is known of the server's machine."""
    machine = None
    if price is not None and is_loopback(plan.address):
        machine = Machine(len(os.sched_getaffinity(0)), [gpu[1] for gpu in visible_gpus()])
    item = item_of(parse_mix(plan.mix)) if plan.mix else SCENARIOS[plan.scenario].item
    return cost(items_per_s, price, item, spread, machine)


def describe_run(
    plan: LoadPlan, server: ServerInfo, sent: dict[str, Any], *, kind: str, label: str | None
) -> dict[str, Any]:
    """What stands beside every result: plan, server, machine, versions.

    Args:
        sent: what the images were, as the load generator tells it.
        kind: of the record.
        label: what tables call the result.
    """
    return {
        "schema": SCHEMA,
        "kind": kind,
        "label": label,
        "measured_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "plan": _plan(plan, sent),
        "server": {
            "triton": server.version,
            "same_machine_as_client": is_loopback(plan.address),
            "fingerprint": server.spec.fingerprint,
            "spec": asdict(server.spec),
        },
        "client_machine": describe_machine(),
        "client_versions": describe_versions(),
    }


def warnings(results: Mapping[str, Any]) -> list[str]:
    """What a reader must know before believing the numbers."""
    found = []
    if results["client_cpu_cores"] > CLIENT_BOUND_CORES:
        found.append(
            f"the load generator used {results['client_cpu_cores']:.2f} of one core: it may be the bottleneck, "
            "and the server faster than this; spread the users over several runs or machines"
        )
    found += _open_loop_warnings(results)
    if results["total"]["failures"]:
        found.append("some requests failed; they count in no rate and no percentile")
    elif not results["total"]["requests"]:
        found.append("no request ended in the measured time; give a longer --duration")
    return found


def kept_up(results: Mapping[str, Any]) -> bool:
    """Whether the server answered as many requests as were due, but for chance at the window's ends."""
    window_s = results["window_s"]
    due, answered = results["open_loop"]["offered_per_s"] * window_s, results["total"]["requests_per_s"] * window_s
    return bool(due - answered <= AT_THE_ENDS + (1 - KEPT_UP) * due)


def _open_loop_warnings(results: Mapping[str, Any]) -> list[str]:
    """Where the offered load is not what was measured: behind the server, or behind the load generator."""
    offered = results.get("open_loop")
    if not offered:
        return []
    found = []
    total, rate = results["total"], offered["offered_per_s"]
    if not kept_up(results):
        found.append(
            f"{rate:.1f} requests a second were due and {total['requests_per_s']:.1f} were answered: the server did "
            "not keep up, and the times grow with the duration"
        )
    if offered["lag_ms_p99"] > LATE_MS:
        found.append(
            f"the load generator sent requests late, 1 of 100 by {offered['lag_ms_p99']:.0f} ms or more, which the "
            "times hold; spread the rate over several runs or machines"
        )
    return found


def render(report: dict[str, Any]) -> str:
    """The report as text: heading, table, cost, warnings."""
    parts = [_heading(report), _table(report["results"]), *spread_line(report)]
    parts += [_cost_line(report), _cpu_line(report["results"])]
    parts.extend(_open_loop_line(report["results"]))
    if report["results"].get("stages"):
        parts.append("\nwhere the time went, means of the server's own counts:\n")
        parts.append(stages_text.render(report["results"], sys.stdout.encoding) + "\n")
    reasons = report["results"]["total"]["failure_reasons"]
    parts.extend(f"failed {count} x: {reason}" for reason, count in list(reasons.items())[:5])
    parts.extend(f"warning: {warning}" for warning in report["warnings"])
    if report["broken"]:
        parts.append(f"broken: {report['broken']}; what was measured before is above")
    return "\n".join(parts)


def _plan(plan: LoadPlan, sent: dict[str, Any]) -> dict[str, Any]:
    # Paths and addresses tell whose machine it was, and repeat nothing elsewhere.
    values = {name: value for name, value in asdict(plan).items() if name not in ("address", "metrics_url", "samples")}
    values["images"] = sent
    values["texts"] = "lines of a file" if plan.texts else plan.text_lengths or "captions"
    return values


def _heading(report: dict[str, Any]) -> str:
    plan, server = report["plan"], report["server"]
    spec = server["spec"]
    arriving = f"{plan['rate']:g} requests/s offered over" if plan["rate"] else ""
    if plan["shape"]:
        arriving = f"{plan['shape']} offered over"
    return (
        f"{plan['scenario']}: {arriving}{' ' if arriving else ''}{plan['users']} "
        f"{'connections' if arriving else 'users'}, batch {plan['batch_size']}, "
        f"{report['results']['window_s']:.1f} s measured after {plan['warmup_s']} s of warm-up\n"
        f"server: Triton {server['triton']}, {spec['name']} ({spec['architecture']}, {spec['precision']}), "
        f"fingerprint {server['fingerprint'][:12]}\n"
    )


def _table(results: dict[str, Any]) -> str:
    rows = [_row(name, summary) for name, summary in results["by_model"].items()]
    if len(rows) != 1:
        rows.append(_row("total", results["total"]))
    return format_table(COLUMNS, rows)


def spread_line(report: Mapping[str, Any]) -> list[str]:
    """The throughput of all runs and how well it is known, where there are several."""
    found = report["spread"].get("items_per_s")
    if found is None or found["n"] < 2:
        return []
    relative = "unknown" if found["relative"] is None else f"{found['relative']:.1%}"
    return [
        f"\n{found['mean']:.1f} items/s ± {relative} (95 % confidence of {found['n']} runs, {found['low']:.1f} to "
        f"{found['high']:.1f}); the table is the run in their middle"
    ]


def _row(name: str, summary: dict[str, Any]) -> tuple[str, ...]:
    times = summary["latency_ms"] or {}
    latencies = (f"{times[key]:.1f}" if times else "-" for key in ("p50", "p95", "p99", "max"))
    rates = (f"{summary[key]:.1f}" for key in ("items_per_s", "requests_per_s"))
    return (name, *rates, *latencies, str(summary["failures"]))


def _cost_line(report: dict[str, Any]) -> str:
    found = report["cost"]
    if found is None:
        return "\ncost: not computed; give the server's price with --price-per-hour X or --instance NAME"
    notes = [f"note: {found['priced_as_if']}; give yours with --price-per-hour"] if found["priced_as_if"] else []
    return "\n" + "\n".join([cost_line(found), *notes])


def _open_loop_line(results: dict[str, Any]) -> list[str]:
    offered = results.get("open_loop")
    if not offered:
        return []
    rate, lag_ms = offered["offered_per_s"], offered["lag_ms_p99"]
    return [
        f"open loop: {rate:.1f} requests/s were due, 1 of 100 was sent {lag_ms:.1f} ms late or more; "
        f"{results['total']['unanswered']} had no answer at the end, and count with their age"
    ]


def _cpu_line(results: dict[str, Any]) -> str:
    return (
        f"load generator: {results['client_cpu_cores']:.2f} of one core; "
        f"its whole machine {results['machine_cpu_share']:.0%} busy"
    )
