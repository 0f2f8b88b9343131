"""The figures of several runs: throughput and latency, cost and latency, baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tritonclip_bench.errors import PriceError
from tritonclip_bench.page import charts, facts
from tritonclip_bench.page.numbers import figure, money
from tritonclip_bench.page.tables import Figure, draw_figure, table
from tritonclip_bench.pareto import ON_FRONT, Run, run_of, verdicts
from tritonclip_bench.records import Record, number

COLOURS = 6


def curve(loads: Sequence[Record]) -> Figure | None:
    """Throughput against latency; None for fewer than two points."""
    numbers = _numbers(loads)
    points = [load for load in loads if _mean(load, "p99") is not None and facts.throughput(load)]
    points = [load for load in points if load["series"]["kind"] != "baselines"]
    if len(points) < 2:
        return None
    names = list(dict.fromkeys(_curve_of(load) for load in points))
    found: list[charts.Line] = []
    for index, name in enumerate(names):
        own = [load for load in points if _curve_of(load) == name]
        own.sort(key=lambda load: (number(load, "plan", "rate") or 0, number(load, "plan", "users") or 0))
        css = f"c{index % COLOURS + 1}"
        joined = _is_curve(own[0])
        found.append(charts.Line(_points(own, "p50", numbers), f"{css} dashed", joined, square=True))
        found.append(charts.Line(_points(own, "p99", numbers), css, joined, labelled=True))
    legend = [("c6", "round", "p99"), ("c6", "square", "p50")] if len(names) > 1 else []
    legend = legend or [("c1", "round", "p99"), ("c1", "square", "p50")]
    legend += [(f"c{index % COLOURS + 1}", "line", name) for index, name in enumerate(names) if len(names) > 1]
    shown = [line for line in found if line.points]
    marks = [point for line in shown for point in line.points]
    x_title = _axis(f"{_items(points)} per second", [mark.x for mark in marks])
    y_title = _axis("latency, ms", [mark.y for mark in marks])
    return draw_figure(
        "curve",
        "Throughput and latency",
        "With more load a server moves to the right until it is full, then up. Labels: users of a closed loop, "
        "requests/s of an open one, or a run's number above.",
        lambda width: charts.lines(width, shown, x_title, y_title),
        table(
            [
                ("run", [load["label"] for load in points]),
                ("load", [facts.offered(load) for load in points]),
                ("items/s", [_mean(load, None) for load in points]),
                ("p50, ms", [_mean(load, "p50") for load in points]),
                ("p99, ms", [_mean(load, "p99") for load in points]),
            ]
        ),
        legend,
    )


def paretos(loads: Sequence[Record]) -> list[Figure]:
    """Cost against p99 over all runs that may be compared, a figure for each kind of item and currency."""
    numbers = _numbers(loads)
    groups: dict[tuple[str, str], list[Run]] = {}
    for load in loads:
        run = _run(load)
        if run and run.cost and run.point:
            groups.setdefault((run.item, run.cost["currency"]), []).append(run)
    several = len(groups) > 1
    return [
        _pareto(runs, f"pareto{index}", f"Cost and latency{f', {item}' if several else ''}", numbers, unit)
        for index, ((item, unit), runs) in enumerate(groups.items(), 1)
        if len(runs) > 1
    ]


def _run(load: Record) -> Run | None:
    try:
        return run_of(load, None)
    except PriceError:
        return None


def _pareto(runs: Sequence[Run], name: str, title: str, numbers: Mapping[str, str], unit: str) -> Figure:
    told = [verdict == ON_FRONT for verdict in verdicts(runs)]
    points = [
        charts.Point(
            *run.point,
            numbers[run.label],
            f"{numbers[run.label]} {run.label}: {money(run.point[0], unit)} per million, p99 {figure(run.point[1])} ms",
            "c1" if wins else "plain",
        )
        for run, wins in zip(runs, told, strict=True)
        if run.point
    ]
    front = [point for point, wins in zip(points, told, strict=True) if wins]
    x_title = _axis(f"{unit} per million {runs[0].item}", [point.x for point in points])
    y_title = _axis("p99, ms", [point.y for point in points])
    return draw_figure(
        name,
        title,
        "Down and left is better. The line joins the runs that none beats in both (the Pareto front); numbers as in "
        "the table above.",
        lambda width: charts.pareto(width, points, front, x_title, y_title),
        table(
            [
                ("#", [point.label for point in points]),
                ("run", [run.label for run in runs]),
                (f"{unit} per million", [point.x for point in points]),
                ("p99, ms", [point.y for point in points]),
                ("", verdicts(runs)),
            ]
        ),
        [("c1", "round", "on the front"), ("plain", "round", "beaten in both")],
    )


def baselines(loads: Sequence[Record]) -> Figure | None:
    """Throughput of every side of a comparison; None where there are not two."""
    sides = [load for load in loads if load["series"]["kind"] == "baselines" and facts.throughput(load)]
    if len(sides) < 2:
        return None
    found = [spread for load in sides if (spread := facts.throughput(load))]
    first = found[0].mean
    bars = [
        charts.Bar(
            load["label"],
            f"{facts.within(known)} · {known.mean / first:.2f} x" if first else facts.within(known),
            [("c1" if index == 0 else "c6", "items/s", known.mean)],
            None if known.half_width is None else known.mean - known.half_width,
            None if known.half_width is None else known.mean + known.half_width,
        )
        for index, (load, known) in enumerate(zip(sides, found, strict=True))
    ]
    return draw_figure(
        "baselines",
        "Against baselines",
        f"Throughput of each, and its ratio to {sides[0]['label']}. Lines at the ends: 95 % confidence.",
        lambda width: charts.bars(width, bars, f"{_items(sides)} per second"),
        table(
            [
                ("side", [load["label"] for load in sides]),
                ("items/s", [known.mean for known in found]),
                ("± (95 %)", [known.half_width for known in found]),
                ("ratio", [known.mean / first if first else None for known in found]),
                ("p50, ms", [_mean(load, "p50") for load in sides]),
                ("p99, ms", [_mean(load, "p99") for load in sides]),
            ]
        ),
    )


def _points(loads: Sequence[Record], name: str, numbers: Mapping[str, str]) -> list[charts.Point]:
    found = []
    for load in loads:
        x, y = _mean(load, None), _mean(load, name)
        if x is not None and y is not None:
            label = facts.offered(load) if _is_curve(load) else numbers[load["label"]]
            hint = f"{load['label']}: {figure(x)} items/s, {name} {figure(y)} ms"
            found.append(charts.Point(x, y, label, hint, "" if facts.is_sound(load) else "hollow"))
    return found


def _axis(title: str, values: Sequence[float]) -> str:
    return f"{title} (log)" if charts.is_wide(values) else title


def _mean(load: Record, name: str | None) -> float | None:
    found = facts.throughput(load) if name is None else facts.latency(load, name)
    return None if found is None else found.mean


def _items(loads: Sequence[Record]) -> str:
    names = {facts.item(load) for load in loads}
    return names.pop() if len(names) == 1 else "items"


def _numbers(loads: Sequence[Record]) -> dict[str, str]:
    """By label, the number that the table of the settings gives."""
    return {load["label"]: str(index) for index, load in enumerate(loads, 1)}


def _curve_of(load: Record) -> str:
    return str(load["series"]["label"]) if _is_curve(load) else "single runs"


def _is_curve(load: Record) -> bool:
    return load["series"]["kind"] in ("curve", "slo")
