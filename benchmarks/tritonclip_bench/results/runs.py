"""Every raw run as one flat row, for tables and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from tritonclip_bench.cost.prices import dollars_per_million, price_name
from tritonclip_bench.files import write_bytes
from tritonclip_bench.records import Record, number, section, text

Value = str | float | None

# Name of the column, with its unit, to what docs/report.md says of it.
COLUMNS: Mapping[str, str] = {
    "label": "the record's, or its file's name",
    "series_kind": "what it was measured as: load, curve, slo, tune or baselines",
    "series": "the label of that",
    "run": "number of the repeat, from 1",
    "measured_at": "ISO 8601, UTC",
    "scenario": "what was sent",
    "users": "requests in flight, or connections of an open loop",
    "rate_per_s": "requests a second of an open loop; empty in a closed one",
    "batch_size": "images or texts in a request",
    "window_s": "seconds that were measured",
    "requests": "answered rightly",
    "items": "images or texts in them",
    "items_per_s": "items a second",
    "requests_per_s": "requests a second",
    "latency_mean_ms": "mean response time in milliseconds",
    "latency_p50_ms": "median response time",
    "latency_p95_ms": "95th percentile",
    "latency_p99_ms": "99th percentile",
    "latency_max_ms": "the slowest",
    "failures": "requests that failed or were answered wrongly",
    "unanswered": "requests of an open loop without answer at the end",
    "rejected": "requests that Triton turned away",
    "client_cpu_cores": "cores that the load generator used",
    "server_cpu_cores": "cores that the server used",
    "machine_cpu_share": "busy share, 0 to 1, of the load generator's machine",
    "price_per_hour": "of the whole server",
    "currency": "of the price, ISO 4217",
    "instance": "whose price it is; spot has `:spot` behind it",
    "cost_per_million": "of a million items, in the currency",
    "items_per_currency_unit": "items for one dollar, or one unit of another currency",
    "model": "the served model's name",
    "architecture": "of the model",
    "precision": "float32, float16 or int8",
    "runtime": "what runs the encoders",
    "triton": "the server's version",
    "fingerprint": "of weights, spec and precision",
    "cpu": "of the load generator's machine",
    "cores": "of the load generator's machine",
    "broken": "why the run is not whole; empty for a whole one",
}
# A spreadsheet takes a cell that begins so for a formula.
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def run_rows(loads: Sequence[Record]) -> list[dict[str, Value]]:
    """One row a run, with the keys of COLUMNS; None for what the record does not tell."""
    return [_row(load, index, results) for load in loads for index, results in enumerate(load["repeats"], 1)]


def write_csv(path: Path, loads: Sequence[Record]) -> None:
    """Write every run as CSV: a row of names, then a row a run, as RFC 4180 has it.

    Raises:
        BenchError: the folder is missing or cannot be written, or `path` is a folder.
    """
    made = io.StringIO()
    writer = csv.writer(made)
    writer.writerow(COLUMNS)
    writer.writerows([_cell(row[name]) for name in COLUMNS] for row in run_rows(loads))
    write_bytes(path, made.getvalue().encode())


def _cell(value: Value) -> Value:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def _row(load: Record, index: int, results: Record) -> dict[str, Value]:
    plan, total, price = section(load, "plan"), section(results, "total"), section(load, "cost", "price")
    spec = section(load, "server", "spec")
    hourly, items = number(price, "price_per_hour"), number(total, "items_per_s")
    cost = dollars_per_million(items, hourly) if items and items > 0 and hourly else None
    row: dict[str, Value] = {
        "label": load["label"],
        "series_kind": load["series"]["kind"],
        "series": load["series"]["label"],
        "run": index,
        "rate_per_s": number(plan, "rate"),
        "price_per_hour": hourly,
        "currency": (text(price, "currency") or "USD") if hourly else None,
        "instance": price_name(text(price, "instance"), text(price, "kind")),
        "cost_per_million": cost,
        "items_per_currency_unit": 1e6 / cost if cost else None,
        "model": text(spec, "name"),
        "triton": text(load, "server", "triton"),
        "fingerprint": text(load, "server", "fingerprint"),
        "cpu": text(load, "client_machine", "cpu"),
        "cores": number(load, "client_machine", "cores"),
        "measured_at": text(load, "measured_at"),
        "scenario": text(plan, "scenario"),
        "broken": text(results, "broken"),
    }
    row |= {name: number(plan, name) for name in ("users", "batch_size")}
    row |= {name: text(spec, name) for name in ("architecture", "precision", "runtime")}
    row |= {name: number(results, name) for name in ("window_s", "rejected", "client_cpu_cores", "server_cpu_cores")}
    row["machine_cpu_share"] = number(results, "machine_cpu_share")
    for name in ("requests", "items", "items_per_s", "requests_per_s", "failures", "unanswered"):
        row[name] = number(total, name)
    for name in ("mean", "p50", "p95", "p99", "max"):
        row[f"latency_{name}_ms"] = number(total, "latency_ms", name)
    return row
