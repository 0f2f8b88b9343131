"""Plain tables for a terminal."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

_GAP = "  "
# Written out already: 12, 12.3, 1.5e-07, 95.0 %.
_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?( ?%)?")
_NOTHING = ("", "-")


def format_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Align cells in columns: those of numbers to the right, all others to the left; floats get 4 decimals.

    A number that should look otherwise is given as a str; "-" and "" stand for a missing one. Characters
    that would move the cursor are written as escapes. No newline at the end.
    """
    cells = [[_escape(name) for name in header], *([_cell(value) for value in row] for row in rows)]
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    numeric = [_is_numeric(column[1:]) for column in zip(*cells, strict=True)]
    rule = ["-" * width for width in widths]
    return "\n".join(_line(row, widths, numeric) for row in (cells[0], rule, *cells[1:]))


def _line(row: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    padded = [
        " " * (width - _width(cell)) + cell if right else cell + " " * (width - _width(cell))
        for cell, width, right in zip(row, widths, numeric, strict=True)
    ]
    return _GAP.join(padded).rstrip()


def _cell(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else _escape(str(value))


def _is_numeric(column: Sequence[str]) -> bool:
    numbers = [cell for cell in column if cell not in _NOTHING]
    return bool(numbers) and all(map(_NUMBER.fullmatch, numbers))


def _escape(text: str) -> str:
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def _width(text: str) -> int:
    """Columns on a terminal: two for wide characters, none for combining ones."""
    return sum(
        0 if unicodedata.combining(character) else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in text
    )
