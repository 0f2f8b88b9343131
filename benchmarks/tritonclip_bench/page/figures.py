"""The figures of several runs: throughput and latency, cost and latency, baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tritonclip_bench.page import charts, facts
from tritonclip_bench.page.numbers import figure, money
from tritonclip_bench.page.tables import Figure, draw_figure, table
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


def pareto(loads: Sequence[Record]) -> Figure | None:
    """Cost against p99 over all runs; None for fewer than two with a price, or in several currencies."""
    priced = [load for load in loads if facts.cost_per_million(load) and _mean(load, "p99") and facts.is_sound(load)]
    units = {facts.currency(load) for load in priced}
    if len(priced) < 2 or len(units) != 1:
        return None
    unit = units.pop()
    numbers = _numbers(loads)
    places = [(facts.cost_per_million(load) or 0.0, _mean(load, "p99") or 0.0) for load in priced]
    is_front = [not any(_beats(other, place) for other in places) for place in places]
    points = [
        charts.Point(
            *place,
            numbers[load["label"]],
            f"{numbers[load['label']]} {load['label']}: {money(place[0], unit)} per million, p99 {figure(place[1])} ms",
            "c1" if front else "plain",
        )
        for load, place, front in zip(priced, places, is_front, strict=True)
    ]
    front = [point for point, wins in zip(points, is_front, strict=True) if wins]
    return draw_figure(
        "pareto",
        "Cost and latency",
        "Down and left is better. The line joins the runs that none beats in both (the Pareto front); numbers as in "
        "the table above.",
        lambda width: charts.pareto(
            width,
            points,
            front,
            _axis(f"{unit} per million {_items(priced)}", [point.x for point in points]),
            _axis("p99, ms", [point.y for point in points]),
        ),
        table(
            [
                ("#", [point.label for point in points]),
                ("run", [load["label"] for load in priced]),
                (f"{unit} per million", [point.x for point in points]),
                ("p99, ms", [point.y for point in points]),
                ("on the front", ["yes" if wins else "no" for wins in is_front]),
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


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one != other and one[0] <= other[0] and one[1] <= other[1]
