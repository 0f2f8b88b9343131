"""The record of a comparison, and its tables."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from baselines.patterns import CEILING, EXPECTED, IN_PROCESS, OURS, PATTERNS, SCENARIOS, Pattern, measured_as
from tritonclip_bench.machine import describe_machine
from tritonclip_client.table import format_table

COLUMNS = (
    *("side", "items/s", "lowest", "highest", "p50 ms", "p99 ms"),
    *("tritonclip / it", "lowest", "highest", "expected", "generator cores", "failed"),
)
ITEMS = {"image": "images", "text": "texts"}

# Side, scenario, pattern's name, round.
Key = tuple[str, str, str, int]
Runs = Mapping[Key, Mapping[str, Any]]


def rounds_of(runs: Runs, side: str, scenario: str, pattern: Pattern) -> dict[int, Mapping[str, Any]]:
    """What was measured, by round; for a side in process that of the batch which stands for `pattern`."""
    name = measured_as(side, pattern).name
    return {key[3]: results for key, results in runs.items() if key[:3] == (side, scenario, name)}


def items_per_s(results: Mapping[str, Any], side: str, pattern: Pattern) -> float:
    """The throughput of a run: clients x batch / (mean latency + what the client does between two requests).

    This is the response time law of a closed loop (P. J. Denning and J. P. Buzen, Computing Surveys 10, 1978). Where
    few answers come, eight items and several at once, what is counted in a window jumps with where it begins. A process
    without clients ends its window with a batch and is counted; so is a run in which requests failed.
    """
    total = results["total"]
    if side in IN_PROCESS or total["failures"] or not total["latency_ms"]:
        return float(total["items_per_s"])
    cycle_ms = total["latency_ms"]["mean"] + results["client"]["check_ms"]
    return float(pattern.clients * pattern.batch / cycle_ms * 1000)


def ratios(runs: Runs) -> list[dict[str, Any]]:
    """Tritonclip's throughput over each baseline's, in every round that has both; median and range."""
    found = []
    for scenario in SCENARIOS:
        for pattern in PATTERNS:
            ours = rounds_of(runs, OURS, scenario, pattern)
            for baseline, expected in EXPECTED.items():
                theirs = rounds_of(runs, baseline, scenario, pattern)
                slow = {number: items_per_s(one, baseline, pattern) for number, one in theirs.items()}
                both = [number for number in ours if slow.get(number)]
                if not both or pattern.name not in expected[scenario]:
                    continue
                each = [items_per_s(ours[number], OURS, pattern) / slow[number] for number in both]
                found.append(
                    {
                        "scenario": scenario,
                        "pattern": pattern.name,
                        "baseline": baseline,
                        "ceiling": baseline == CEILING,
                        "expected": expected[scenario][pattern.name],
                        "ratio": statistics.median(each),
                        "lowest": min(each),
                        "highest": max(each),
                        "ratios": each,
                    }
                )
    return found


def render(record: Mapping[str, Any], *, markdown: bool = False) -> str:
    """The tables for people, one for each scenario and pattern, and what did not go as it should."""
    table: Callable[[Sequence[str], Sequence[Sequence[str]]], str] = _markdown if markdown else format_table
    measured: dict[tuple[str, str], dict[str, Any]] = {}
    for load in record["records"]:
        measured.setdefault((load["scenario"], load["pattern"]), {})[load["side"]] = load
    parts = []
    for scenario in SCENARIOS:
        for pattern in PATTERNS:
            loads = {
                side: measured[key][side]
                for side in record["sides"]
                if side in measured.get(key := (scenario, measured_as(side, pattern).name), {})
            }
            if OURS not in loads:
                continue
            found = {
                row["baseline"]: row
                for row in record["ratios"]
                if (row["scenario"], row["pattern"]) == (scenario, pattern.name)
            }
            rows = [_row(side, load, found.get(side)) for side, load in loads.items()]
            clients = f"{pattern.clients} client{'s' if pattern.clients > 1 else ''}"
            title = f"{ITEMS[scenario]}, {clients}, {pattern.batch} in a request"
            parts += [f"**{title}**" if markdown else title, table(COLUMNS, rows)]
    parts += [f"{side} was left out: {told['reason']}" for side, told in record["sides"].items() if told.get("reason")]
    parts += [f"warning: {warning}" for warning in record["warnings"]]
    if record["broken"]:
        parts.append(f"broken: {record['broken']}; what was measured before is above")
    return "\n\n".join(parts)


def _row(side: str, load: Mapping[str, Any], ratio: Mapping[str, Any] | None) -> tuple[str, ...]:
    totals = [results["total"] for results in load["repeats"]]
    rates = load["throughput"]
    times = [total["latency_ms"] for total in totals if total["latency_ms"]]
    latencies = (f"{statistics.median(one[name] for one in times):.1f}" if times else "-" for name in ("p50", "p99"))
    names = ("ratio", "lowest", "highest", "expected")
    compared = [f"{ratio[name]:.2f}" if ratio else "-" for name in names]
    generator = statistics.median(results["client_cpu_cores"] for results in load["repeats"])
    failed = sum(total["failures"] for total in totals)
    spread = (f"{value:.1f}" for value in (statistics.median(rates), min(rates), max(rates)))
    return (side, *spread, *latencies, *compared, f"{generator:.2f}", str(failed))


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def describe() -> dict[str, Any]:
    """What every record of this kind begins with."""
    return {
        "schema": 2,
        "kind": "baselines",
        "label": None,
        "measured_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "client_machine": describe_machine(),
    }
