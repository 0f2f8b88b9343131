"""The charts of single runs and of several, as SVG of a given width in pixels. None has data of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tritonclip_bench.results.page.numbers import figure
from tritonclip_bench.results.page.svg import CHARACTER_PX, Canvas, Scale, linear, logarithmic, margin

# Beyond this ratio of the largest value to the smallest, a linear axis hides the small ones.
WIDE_RANGE = 12
BAR_PX, ROW_PX = 20, 50


@dataclass(frozen=True)
class Point:
    """One run in a chart of several.

    Attributes:
        x, y: the values.
        label: in the chart; the whole name is in the hint.
        hint: under the pointer.
        css: the class of its mark.
    """

    x: float
    y: float
    label: str
    hint: str
    css: str = "c1"


@dataclass(frozen=True)
class Line:
    """Points of one kind, in the order of the load.

    Attributes:
        css: the class of the line and of its marks.
        joined: whether a line joins them.
        square, labelled: how its marks look, and whether they are labelled.
    """

    points: Sequence[Point]
    css: str
    joined: bool = True
    square: bool = False
    labelled: bool = False


@dataclass(frozen=True)
class Bar:
    """A bar, stacked of parts.

    Attributes:
        label, value: in words, above the bar.
        parts: class, name and size of each.
        low, high: the ends of its interval; None without one.
    """

    label: str
    value: str
    parts: Sequence[tuple[str, str, float]]
    low: float | None = None
    high: float | None = None


def lines(width: int, found: Sequence[Line], x_title: str, y_title: str) -> Canvas:
    """Points and lines, as of throughput and latency."""
    canvas = Canvas(width, 320)
    points = [point for line in found for point in line.points]
    y = _axis([point.y for point in points], 276, 34, 7)
    x = _axis([point.x for point in points], margin(y), width - 14.0, max(3, width // 90))
    canvas.frame(x, y, x_title, y_title)
    for line in found:
        if line.joined and len(line.points) > 1:
            canvas.path([(x(point.x), y(point.y)) for point in line.points], f"line {line.css}")
    for line in found:
        for point in line.points:
            canvas.dot(x(point.x), y(point.y), f"dot {line.css} {point.css}", point.hint, square=line.square)
    for line in found:
        for point in line.points if line.labelled else ():
            canvas.label(x(point.x), y(point.y), point.label)
    return canvas


def pareto(width: int, points: Sequence[Point], front: Sequence[Point], x_title: str, y_title: str) -> Canvas:
    """Cost against latency: the points that no other beats in both are joined by a step."""
    canvas = Canvas(width, 320)
    y = _axis([point.y for point in points], 276, 34, 7)
    x = _axis([point.x for point in points], margin(y), width - 14.0, max(3, width // 90))
    canvas.frame(x, y, x_title, y_title)
    steps: list[tuple[float, float]] = []
    for point in sorted(front, key=lambda point: (point.x, -point.y)):
        if steps:
            steps.append((x(point.x), steps[-1][1]))
        steps.append((x(point.x), y(point.y)))
    canvas.path(steps, "line c1 thin")
    for point in points:
        canvas.dot(x(point.x), y(point.y), f"dot {point.css}", point.hint)
    for point in points:
        canvas.label(x(point.x), y(point.y), point.label)
    return canvas


def distribution(
    width: int, edges: Sequence[float], counts: Sequence[float], marks: Sequence[tuple[str, float]]
) -> Canvas:
    """Response times in bins on a logarithmic axis, in per cent of the requests, with `marks` (name, milliseconds)."""
    canvas = Canvas(width, 320)
    filled = [index for index, count in enumerate(counts) if count > 0]
    first, last = filled[0], filled[-1] + 1
    shares = [100 * count / sum(counts) for count in counts]
    top = 34 + 17 * len(marks)
    y = linear(max(shares), 276, top, 4)
    x = logarithmic(edges[first], edges[last], margin(y), width - 14.0, max(3, width // 60))
    canvas.frame(x, y, "response time, ms (log)", "")
    canvas.text(0, 12, "requests in each bin, %", "unit")
    for index in range(first, last):
        left, right = x(edges[index]), x(edges[index + 1])
        hint = f"{figure(edges[index])} to {figure(edges[index + 1])} ms: {figure(shares[index])} %"
        canvas.box(left, y(shares[index]), max(right - left - 0.6, 0.6), y.start - y(shares[index]), "fill c1", hint)
    for row, (name, value) in enumerate(marks):
        at, base = x(min(max(value, x.low), x.high)), 34 + 17 * row
        content = f"{name} {figure(value)} ms"
        canvas.line(at, base + 3, at, y.start, "mark")
        long = len(content) * CHARACTER_PX
        # To the right it crosses no other mark: those begin below it.
        left = at + 5 if at + 5 + long <= width else at - 5 - long
        if left < at:
            canvas.box(left, base - 6, long, 16, "cover")
        canvas.text(left, base + 6, content, "label")
    return canvas


def timeline(
    width: int,
    seconds: Sequence[float],
    rates: Sequence[tuple[str, Sequence[float | None]]],
    p99: Sequence[float | None],
) -> Canvas:
    """Requests of every second, and below them the p99 of those that were answered in it.

    Args:
        rates: class and values of each line.
    """
    has_times = any(value is not None for value in p99)
    canvas = Canvas(width, 380 if has_times else 240)
    rate_y = linear(max((value or 0 for _, values in rates for value in values), default=0), 180, 34, 3)
    time_y = linear(max((value or 0 for value in p99), default=0), 330, 250, 3)
    left = max(margin(rate_y), margin(time_y) if has_times else 0)
    x = Scale(*_seconds(seconds, left, width - 14.0, width // 70))
    canvas.frame(x, rate_y, "" if has_times else "seconds", "requests of each second")
    for css, values in rates:
        _broken_line(canvas, [(x(at), value) for at, value in zip(seconds, values, strict=True)], rate_y, css)
    if has_times:
        canvas.frame(x, time_y, "seconds", "p99 of each second, ms")
        _broken_line(canvas, [(x(at), value) for at, value in zip(seconds, p99, strict=True)], time_y, "c4")
    return canvas


def bars(width: int, rows: Sequence[Bar], title: str) -> Canvas:
    """Horizontal bars, each with its name and value above it."""
    canvas = Canvas(width, ROW_PX * len(rows) + 48)
    ends = [max(sum(size for *_, size in row.parts), row.high or 0) for row in rows]
    x = linear(max(ends), 1, width - 2.0, max(3, width // 90))
    bottom = ROW_PX * len(rows) + 8.0
    for value in x.ticks:
        canvas.line(x(value), 4, x(value), bottom, "grid" if value else "axis")
    canvas.frame(x, Scale(0, 1, bottom, bottom, ()), title, "")
    for row, bar in enumerate(rows):
        top, at = row * ROW_PX + 22.0, 0.0
        # Text crosses the grid's lines.
        canvas.box(0, top - 17, width, 16, "cover")
        room = int((width - 8) / CHARACTER_PX) - len(bar.value) - 1
        canvas.text(2, top - 5, _cut(bar.label, room), "label")
        canvas.text(width - 2.0, top - 5, bar.value, "label", "end")
        for css, name, size in bar.parts:
            hint = f"{bar.label}: {name} {figure(size)}"
            canvas.box(x(at), top, max(x(at + size) - x(at), 0.0), BAR_PX, f"fill seam {css}", hint)
            at += size
        if bar.low is not None and bar.high is not None:
            middle, low, high = top + BAR_PX / 2, x(max(bar.low, 0.0)), x(bar.high)
            canvas.line(low, middle, high, middle, "whisker")
            canvas.line(low, middle - 5, low, middle + 5, "whisker")
            canvas.line(high, middle - 5, high, middle + 5, "whisker")
    return canvas


def is_wide(values: Sequence[float]) -> bool:
    """Whether an axis of `values` is logarithmic."""
    return min(values) > 0 and max(values) / min(values) > WIDE_RANGE


def _axis(values: Sequence[float], start: float, end: float, most_ticks: int) -> Scale:
    if is_wide(values):
        return logarithmic(min(values), max(values), start, end, most_ticks)
    return linear(max(values), start, end, most_ticks - 2 if most_ticks > 5 else most_ticks)


def _seconds(
    seconds: Sequence[float], start: float, end: float, most: int
) -> tuple[float, float, float, float, tuple[float, ...]]:
    """The fields of a scale that begins at the first second, not at 0, and ends at the last."""
    low, high = min(seconds), max(max(seconds), min(seconds) + 1)
    ticks = linear(high, start, end, max(3, most)).ticks
    return low, high, start, end, tuple(value for value in ticks if low <= value <= high and value == int(value))


def _broken_line(canvas: Canvas, points: Sequence[tuple[float, float | None]], y: Scale, css: str) -> None:
    """A line with a gap where there is no value; a value between two gaps is a point."""
    run: list[tuple[float, float]] = []
    for at, value in [*points, (0.0, None)]:
        if value is not None:
            run.append((at, y(value)))
            continue
        if len(run) == 1:
            canvas.box(run[0][0] - 1.5, run[0][1] - 1.5, 3, 3, f"fill {css}")
        elif run:
            canvas.path(run, f"line {css}")
        run = []


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else f"{text[: max(room - 1, 1)]}…"
