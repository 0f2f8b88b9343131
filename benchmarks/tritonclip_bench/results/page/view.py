"""Everything that the template shows, from load records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from tritonclip_bench.records import Record, number, text
from tritonclip_bench.results.page import facts, figures, run_figures
from tritonclip_bench.results.page.numbers import NOTHING, figure, money
from tritonclip_bench.results.page.tables import Figure, Table, table
from tritonclip_bench.results.runs import run_rows
from tritonclip_bench.results.spread import Spread

# Columns of the raw runs: heading, name in `run_rows`.
RUN_COLUMNS = (
    *(("run", "label"), ("no.", "run"), ("measured, UTC", "measured_at"), ("scenario", "scenario"), ("users", "users")),
    *(("due/s", "rate_per_s"), ("batch", "batch_size"), ("window, s", "window_s"), ("requests", "requests")),
    *(("items/s", "items_per_s"), ("requests/s", "requests_per_s"), ("p50, ms", "latency_p50_ms")),
    *(("p95, ms", "latency_p95_ms"), ("p99, ms", "latency_p99_ms"), ("max, ms", "latency_max_ms")),
    *(("failed", "failures"), ("unanswered", "unanswered"), ("rejected", "rejected")),
    *(("generator, cores", "client_cpu_cores"), ("server, cores", "server_cpu_cores"), ("not whole because", "broken")),
)

KINDS = {
    "load": "load test",
    "slo": "search for an objective",
    "curve": "throughput-latency curve",
    "tune": "tuning",
    "baselines": "comparison with baselines",
    "report": "report",
}


def view(loads: Sequence[Record]) -> dict[str, Any]:
    """The template's variables."""
    head = facts.best(loads)
    several = len(loads) > 1
    return {
        "style": Markup(_style()),
        "title": _title(loads),
        "kind": KINDS[loads[0]["series"]["kind"]] if len({load["series"]["kind"] for load in loads}) == 1 else "runs",
        "head": head,
        "several": several,
        "subtitle": _subtitle(head),
        "measured": _measured(loads),
        "tiles": _tiles(head),
        "broken": facts.broken(loads),
        "failures": facts.failures(loads),
        "warnings": facts.warnings(loads),
        "setup": [
            ("Machine", facts.machine(head)),
            ("Model", facts.model(head)),
            ("Load", facts.settings(head)),
        ],
        "versions": facts.versions(head),
        "setup_differs": several and any(_setup(load) != _setup(head) for load in loads),
        "overview": [*figures.baselines(loads), *figures.curve(loads), *figures.paretos(loads)],
        "compared": _compared(loads) if several else None,
        "details": [_detail(load, f"run{index}", load is head) for index, load in enumerate(loads, 1)],
        "cost": _cost(loads),
        "runs": _runs(loads),
    }


def _title(loads: Sequence[Record]) -> str:
    if len(loads) == 1:
        return str(loads[0]["label"])
    series = {load["series"]["label"] for load in loads}
    return series.pop() if len(series) == 1 else f"{len(loads)} settings"


def _style() -> str:
    from importlib.resources import files

    return files("tritonclip_bench.results.page").joinpath("page.css").read_text(encoding="utf-8")


def _subtitle(head: Record) -> str:
    spec = head.get("server") or {}
    named = [text(spec, "spec", key) for key in ("name", "architecture", "precision")]
    where = [text(head, "client_machine", "cpu")]
    return " · ".join(one for one in (*named, *where) if one)


def _measured(loads: Sequence[Record]) -> str:
    """The day, or the first and the last day."""
    days = sorted({told[:10] for load in loads if (told := text(load, "measured_at"))})
    return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}" if days else "at an unknown time"


def _tiles(head: Record) -> list[dict[str, str]]:
    items, p50, p99 = facts.throughput(head), facts.latency(head, "p50"), facts.latency(head, "p99")
    what, unit = facts.item(head), facts.currency(head)
    one = "dollar" if unit == "USD" else unit
    known = items is not None and items.half_width is not None
    tiles = [
        {
            "name": "Throughput",
            **_value(items),
            "unit": f"{what} per second",
            "note": f"95 % confidence, {items.n} runs" if items and known else "one run: its spread is unknown",
        },
        {
            "name": "Latency, p99",
            **_value(p99),
            "unit": "milliseconds",
            "note": f"p50 {figure(p50.mean)} ms" if p50 else "",
        },
        {
            "name": "Cost",
            "value": money(facts.cost_per_million(head), unit),
            "spread": "",
            "unit": f"per million {what}",
            "note": _cost_note(head, unit),
        },
        {
            "name": f"For one {one}",
            "value": figure(facts.items_per_unit(head)),
            "spread": "",
            "unit": what,
            "note": "on a server that is kept this busy",
        },
    ]
    return tiles if facts.price_per_hour(head) else tiles[:3]


def _cost_note(head: Record, unit: str) -> str:
    ends = facts.cost_interval(head)
    if not ends:
        return facts.price(head)
    upper = money(ends[1], unit) if ends[1] is not None else "no upper bound"
    return f"{money(ends[0], unit)} to {upper} (95 % confidence). {facts.price(head)}"


def _value(found: Spread | None) -> dict[str, str]:
    value, _, half_width = facts.within(found).partition(" ± ")
    return {"value": value, "spread": half_width and f"± {half_width}"}


def _setup(load: Record) -> tuple[object, ...]:
    return (facts.machine(load), facts.model(load))


def _detail(load: Record, name: str, is_open: bool) -> dict[str, Any]:
    made = (run_figures.stages(load, name), run_figures.distribution(load, name), run_figures.timeline(load, name))
    shown: list[Figure] = [found for found in made if found]
    return {"label": load["label"], "open": is_open, "figures": shown, "resources": facts.resources(load)}


def _compared(loads: Sequence[Record]) -> Table:
    return table(
        [
            ("#", [float(index) for index in range(1, len(loads) + 1)]),
            ("run", [load["label"] for load in loads]),
            ("load", [facts.offered(load) for load in loads]),
            ("items/s", [found.mean if (found := facts.throughput(load)) else None for load in loads]),
            ("± (95 %)", [found.half_width if (found := facts.throughput(load)) else None for load in loads]),
            *(
                (f"{name}, ms", [found.mean if (found := facts.latency(load, name)) else None for load in loads])
                for name in ("p50", "p95", "p99")
            ),
            ("runs", [len(load["repeats"]) for load in loads]),
            ("", [", ".join(facts.flags(load)) for load in loads]),
        ],
        [bool(facts.flags(load)) for load in loads],
    )


def _cost(loads: Sequence[Record]) -> Table | None:
    priced = [load for load in loads if facts.price_per_hour(load)]
    if not priced:
        return None
    units = [facts.currency(load) for load in priced]
    return table(
        [
            ("run", [load["label"] for load in priced]),
            # What the cost is counted from, not the mean over the runs.
            ("items/s, median run", [number(load, "results", "total", "items_per_s") for load in priced]),
            ("an hour", list(map(facts.hourly, priced))),
            (
                "per million items",
                [money(facts.cost_per_million(load), unit) for load, unit in zip(priced, units, strict=True)],
            ),
            (
                "items per dollar" if set(units) == {"USD"} else "items per unit",
                list(map(facts.items_per_unit, priced)),
            ),
            ("instance", [facts.instance(load) or NOTHING for load in priced]),
            ("source", [text(load, "cost", "price", "source") or NOTHING for load in priced]),
            ("date", [text(load, "cost", "price", "date") or NOTHING for load in priced]),
        ],
    )


def _runs(loads: Sequence[Record]) -> Table:
    rows = run_rows(loads)
    for row in rows:
        # To the minute; CSV and JSON have it whole.
        row["measured_at"] = str(row["measured_at"] or "")[:16].replace("T", " ") or None
    shown = [(heading, [row[name] for row in rows]) for heading, name in RUN_COLUMNS]
    # A column that no run fills says nothing.
    kept = [(heading, values) for heading, values in shown if any(value is not None for value in values)]
    flagged = [bool(row["broken"] or row["failures"]) for row in rows]
    return table(kept, flagged)
