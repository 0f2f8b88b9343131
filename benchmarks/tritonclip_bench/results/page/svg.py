"""Scales and a canvas: what every chart is made of. Everything that is written goes through markupsafe's escaping."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from markupsafe import Markup

# Of the axes' text, in pixels: its height, and what a character of it takes at most on average.
TEXT_PX, CHARACTER_PX = 12, 7
# Steps that people read easily.
NICE = (1, 2, 5)


@dataclass(frozen=True)
class Scale:
    """From values to pixels.

    Attributes:
        low, high: the values at the ends; above 0 where `log`.
        start, end: their pixels.
        ticks: the values with a mark.
    """

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    log: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of `value`."""
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(max(value, self.low))
        return self.start + (at - low) / (high - low) * (self.end - self.start)


def linear(highest: float, start: float, end: float, most_ticks: int) -> Scale:
    """A scale from 0 to a round number at or above `highest`."""
    highest = highest if highest > 0 else 1.0
    step = next(step for step in _steps(highest / most_ticks) if highest / step <= most_ticks)
    count = math.ceil(highest / step - 1e-9)
    return Scale(0, step * count, start, end, tuple(step * i for i in range(count + 1)))


def logarithmic(lowest: float, highest: float, start: float, end: float, most_ticks: int) -> Scale:
    """A logarithmic scale that holds `lowest` (above 0) and `highest`."""
    low, high = lowest / 1.1, highest * 1.1
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for leads in (NICE, (1, 3), (1,)):
        ticks = [lead * 10.0**e for e in exponents for lead in leads if low <= lead * 10.0**e <= high]
        if len(ticks) <= most_ticks:
            break
    return Scale(low, high, start, end, tuple(ticks[:: -(-len(ticks) // most_ticks)] if ticks else ()), log=True)


def _steps(least: float) -> list[float]:
    magnitude = 10.0 ** math.floor(math.log10(least))
    return [lead * magnitude * ten for ten in (1, 10) for lead in NICE]


def tick_text(value: float) -> str:
    """A tick's label, such as 0.5, 20, 1,500 or 2M."""
    for size, unit in ((1e9, "G"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.6g}"


# Left, top, right, bottom in pixels.
Area = tuple[float, float, float, float]


class Canvas:
    """Collects the elements of one SVG of `width` x `height` pixels."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._parts: list[Markup] = []
        self._taken: list[Area] = []
        self._lines: list[Area] = []

    def add(self, template: str, *values: object) -> None:
        """An element: `values`, escaped, numbers to a tenth of a pixel, in the places of `template`."""
        rounded = (f"{value:.1f}" if isinstance(value, float) else value for value in values)
        self._parts.append(Markup(template).format(*rounded))

    def line(self, x1: float, y1: float, x2: float, y2: float, css: str) -> None:
        """A straight line."""
        self.add('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>', css, x1, y1, x2, y2)

    def path(self, points: list[tuple[float, float]], css: str) -> None:
        """A line through `points`, which labels keep clear of."""
        for (x1, y1), (x2, y2) in itertools.pairwise(points):
            count = int(max(abs(x2 - x1), abs(y2 - y1)) / 5) + 1
            along = ((x1 + (x2 - x1) * i / count, y1 + (y2 - y1) * i / count) for i in range(count + 1))
            self._lines.extend((x - 1, y - 1, x + 1, y + 1) for x, y in along)
        steps = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.add('<polyline class="{}" points="{}"/>', css, steps)

    def box(self, x: float, y: float, width: float, height: float, css: str, hint: str = "") -> None:
        """A filled rectangle."""
        title = Markup("<title>{}</title>").format(hint) if hint else ""
        self.add(
            '<rect class="{}" x="{}" y="{}" width="{}" height="{}">{}</rect>', css, x, y, width, max(height, 0.0), title
        )

    def dot(self, x: float, y: float, css: str, hint: str, *, square: bool = False) -> None:
        """A point, round or square; `hint` appears under the pointer."""
        title = Markup("<title>{}</title>").format(hint)
        if square:
            self.add('<rect class="{}" x="{}" y="{}" width="8" height="8">{}</rect>', css, x - 4, y - 4, title)
        else:
            self.add('<circle class="{}" cx="{}" cy="{}" r="4.5">{}</circle>', css, x, y, title)
        self._taken.append((x - 5, y - 5, x + 5, y + 5))

    def text(self, x: float, y: float, content: str, css: str = "tick", anchor: str = "start") -> None:
        """Text on the base line `y`."""
        if content:
            self.add('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>', css, x, y, anchor, content)

    def label(self, x: float, y: float, content: str) -> bool:
        """Text beside the point (x, y), where it covers no other label or point; returns whether there was room."""
        wide = len(content) * CHARACTER_PX
        places = [(x - wide / 2, y - 9), (x + 9, y + 4), (x - 9 - wide, y + 4), (x - wide / 2, y + 18)]
        places += ((x + 7, y - 7), (x - 7 - wide, y - 7), (x + 7, y + 16), (x - 7 - wide, y + 16))
        # Rather across a line than not at all.
        for others in ([*self._taken, *self._lines], self._taken):
            for left, base in places:
                area = (left, base - TEXT_PX + 2, left + wide, base + 2)
                inside = area[0] >= 0 and area[2] <= self.width and area[1] >= 0
                if inside and not any(_overlap(area, other) for other in others):
                    self._taken.append(area)
                    self.text(left, base, content, "label")
                    return True
        return False

    def frame(self, x: Scale, y: Scale, x_title: str, y_title: str) -> None:
        """Grid, ticks and titles of both axes."""
        # Labels keep clear of the ticks' text.
        self._taken += [(0, y.end - 4, x.start - 2, y.start + 20), (0, y.start + 5, self.width, self.height)]
        for value in y.ticks:
            self.line(x.start, y(value), x.end, y(value), "axis" if value == y.low else "grid")
            self.text(x.start - 8, y(value) + 4, tick_text(value), anchor="end")
        if y.low not in y.ticks:
            self.line(x.start, y.start, x.end, y.start, "axis")
        for value in x.ticks:
            self.line(x(value), y.start, x(value), y.start + 4, "axis")
            # At the ends half of it would leave the image.
            half = len(tick_text(value)) * CHARACTER_PX / 2
            anchor = "start" if x(value) < half else "end" if self.width - x(value) < half else "middle"
            self.text(x(value), y.start + 18, tick_text(value), anchor=anchor)
        self.text(x.end, y.start + 36, x_title, "unit", "end")
        self.text(0, y.end - 12, y_title, "unit")

    def svg(self, name: str, title: str, description: str) -> Markup:
        """The image, named for those who do not see it; `name` is unique on the page."""
        return Markup(
            '<svg viewBox="0 0 {w} {h}" width="{w}" height="{h}" role="img" aria-labelledby="{n}-t {n}-d">'
            '<title id="{n}-t">{t}</title><desc id="{n}-d">{d}</desc>{parts}</svg>'
        ).format(w=self.width, h=self.height, n=name, t=title, d=description, parts=Markup("").join(self._parts))


def margin(scale: Scale) -> float:
    """Pixels that the labels of a vertical axis need on its left."""
    return max((len(tick_text(value)) for value in scale.ticks), default=1) * CHARACTER_PX + 12.0


def _overlap(a: Area, b: Area) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
