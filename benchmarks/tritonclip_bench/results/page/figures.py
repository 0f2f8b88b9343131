"""The figures of several runs: throughput and latency, cost and latency, baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tritonclip_bench.cost.pareto import ON_FRONT, Run, different_work, run_of, verdicts
from tritonclip_bench.errors import PriceError
from tritonclip_bench.records import Record, number, text
from tritonclip_bench.results.page import charts, facts
from tritonclip_bench.results.page.numbers import figure, money
from tritonclip_bench.results.page.tables import Figure, draw_figure, table

COLOURS = 6


def curve(loads: Sequence[Record]) -> list[Figure]:
    """Throughput against latency; none for fewer than two points."""
    numbers = _numbers(loads)
    points = [load for load in loads if _mean(load, "p99") is not None and facts.throughput(load)]
    points = [load for load in points if load["series"]["kind"] != "baselines"]
    if len(points) < 2:
        return []
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
    made = draw_figure(
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
    return [made]


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
        + "; but ".join(["the table above", *different_work(runs)])
        + ".",
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


def baselines(loads: Sequence[Record]) -> list[Figure]:
    """Throughput of every side of a comparison, a figure for each load that was put on them."""
    sides = [load for load in loads if load["series"]["kind"] == "baselines" and facts.throughput(load)]
    groups: dict[tuple[object, object], list[Record]] = {}
    for load in sides:
        if load.get("side") in (None, facts.OURS):
            groups.setdefault((text(load, "scenario"), text(load, "pattern")), []).append(load)
    found: list[Figure] = []
    for key, group in groups.items():
        group += _counterparts(group[0], sides)
        if len(group) > 1:
            found.append(_baselines(group, f"baselines{len(found)}", is_only=len(groups) == 1, key=key))
    return found


def _counterparts(ours: Record, sides: Sequence[Record]) -> list[Record]:
    """Of every baseline the record under the load of `ours`; of one without clients, that of its largest batch."""
    found = []
    for side in dict.fromkeys(load["side"] for load in sides if text(load, "side") not in (None, facts.OURS)):
        own = [load for load in sides if load.get("side") == side and load.get("scenario") == ours.get("scenario")]
        same = [load for load in own if load.get("pattern") == ours.get("pattern")]
        alone = [load for load in own if number(load, "plan", "users") == 1 and _batch(load) > 1]
        found += same[:1] or alone[:1]
    return found


def _batch(load: Record) -> float:
    return number(load, "plan", "batch_size") or 0.0


def _baselines(sides: Sequence[Record], name: str, *, is_only: bool, key: tuple[object, object]) -> Figure:
    known = [spread for load in sides if (spread := facts.throughput(load))]
    names = [text(load, "side") or load["label"] for load in sides]
    ratios = [
        _ratio(load, key, known[0].mean / one.mean if one.mean else None)
        for load, one in zip(sides, known, strict=True)
    ]
    bars = [
        charts.Bar(
            side,
            " · ".join([facts.within(one), *([f"{ratio:.2f} x"] if ratio and index else [])]),
            [("c1" if index == 0 else "c6", "items/s", one.mean)],
            None if one.half_width is None else one.mean - one.half_width,
            None if one.half_width is None else one.mean + one.half_width,
        )
        for index, (side, one, ratio) in enumerate(zip(names, known, ratios, strict=True))
    ]
    load = f"{facts.offered(sides[0])}, {_batch(sides[0]):g} in a request"
    return draw_figure(
        name,
        "Against baselines" if is_only else f"Against baselines: {facts.item(sides[0])}, {load}",
        f"Throughput of each, and how many times as fast {names[0]} is. Lines at the ends: 95 % confidence.",
        lambda width: charts.bars(width, bars, f"{_items(sides)} per second"),
        table(
            [
                ("side", names),
                ("items/s", [one.mean for one in known]),
                ("± (95 %)", [one.half_width for one in known]),
                (f"{names[0]} / it", ratios),
                ("p50, ms", [_mean(load, "p50") for load in sides]),
                ("p99, ms", [_mean(load, "p99") for load in sides]),
            ]
        ),
    )


def _ratio(load: Record, key: tuple[object, object], plain: float | None) -> float | None:
    """Ours over it: the median over rounds where the comparison tells it, else that of the means."""
    rows = load["series"].get("ratios")
    for row in rows if isinstance(rows, list) else []:
        if (text(row, "scenario"), text(row, "pattern")) == key and text(row, "baseline") == load.get("side"):
            return number(row, "ratio")
    return plain


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
