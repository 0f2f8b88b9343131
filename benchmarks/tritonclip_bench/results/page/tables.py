"""Tables, and figures: a chart in two widths, its values as a table, and what it shows in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from tritonclip_bench.results.page.numbers import NOTHING, NUMBER, column
from tritonclip_bench.results.page.svg import Canvas

# In pixels: half of a desktop's page, and a phone's screen without its margins.
WIDE, NARROW = 520, 328


@dataclass(frozen=True)
class Table:
    """Cells as text; `numeric` says which columns hold numbers, `flagged` which rows are doubtful."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: Sequence[bool]
    flagged: Sequence[bool] = ()


@dataclass(frozen=True)
class Figure:
    """A chart with its title, what it tells, a legend of (class, shape, name), and its values."""

    name: str
    title: str
    note: str
    wide: Markup
    narrow: Markup
    table: Table
    legend: Sequence[tuple[str, str, str]] = field(default_factory=tuple)


def table(columns: Sequence[tuple[str, Sequence[str | float | None]]], flagged: Sequence[bool] = ()) -> Table:
    """A table of columns, None for what is not known; a column of numbers gets the same decimals throughout."""
    cells = [_written(values) for _, values in columns]
    numeric = [all(map(_is_number, written)) for written in cells]
    return Table([name for name, _ in columns], list(zip(*cells, strict=True)), numeric, flagged)


def draw_figure(
    name: str,
    title: str,
    note: str,
    draw: Callable[[int], Canvas],
    values: Table,
    legend: Sequence[tuple[str, str, str]] = (),
) -> Figure:
    """A figure; `draw` makes its chart for a width."""
    wide = draw(WIDE).svg(f"{name}-wide", title, note)
    return Figure(name, title, note, wide, draw(NARROW).svg(f"{name}-narrow", title, note), values, legend)


def _written(values: Sequence[str | float | None]) -> list[str]:
    numbers = [value for value in values if not isinstance(value, str)]
    return column(numbers) if len(numbers) == len(values) else [NOTHING if v is None else str(v) for v in values]


def _is_number(cell: str) -> bool:
    return cell == NOTHING or NUMBER.fullmatch(cell) is not None
