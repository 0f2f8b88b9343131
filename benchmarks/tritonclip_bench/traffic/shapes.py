"""Loads that change over the measured time, as data: ramps, spikes and steps."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass

from tritonclip_bench.cli_types import positive_number, positive_seconds
from tritonclip_bench.errors import BenchError

FORMS = "ramp:FROM-TO, spike:BASE-PEAK:EVERY:FOR, steps:A,B,... (requests a second), or users:A,B,... (users)"
_RANGE = re.compile(r"([^-]+)-([^-]+)")


@dataclass(frozen=True)
class Shape:
    """How much load there is in each second of the window.

    Attributes:
        kind: "ramp", "spike", "steps" or "users".
        levels: of the load, two for a ramp and a spike: requests a second; of `users` numbers of users.
        every_s, for_s: of a spike: it comes at the end of each so many seconds, and lasts so long.
    """

    kind: str
    levels: tuple[float, ...]
    every_s: float = 0.0
    for_s: float = 0.0

    @property
    def is_open_loop(self) -> bool:
        """Whether it tells requests a second, rather than users."""
        return self.kind != "users"

    @property
    def peak(self) -> float:
        """The most load at any time."""
        return max(self.levels)

    def at(self, second: float, duration_s: float) -> float:
        """The load at a second of a window of `duration_s`; before it what it begins with, after it the last."""
        inside = min(max(second, 0.0), duration_s)
        if self.kind == "ramp":
            begin, end = self.levels
            return begin + (end - begin) * inside / duration_s
        if self.kind == "spike":
            base, peak = self.levels
            return peak if inside % self.every_s >= self.every_s - self.for_s else base
        return self.levels[min(int(inside / duration_s * len(self.levels)), len(self.levels) - 1)]


def shape(text: str) -> str:
    """An argparse type: a load shape, as text that `parse_shape` reads.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    parse_shape(text)
    return text


def parse_shape(text: str) -> Shape:
    """A shape such as ramp:10-200, spike:20-200:30s:5s, steps:50,100,200 or users:4,8,16.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    kind, _, rest = text.partition(":")
    parts = rest.split(":")
    try:
        if kind == "ramp" and len(parts) == 1:
            return Shape(kind, _range(parts[0]))
        if kind == "spike" and len(parts) == 3:
            every_s, for_s = map(positive_seconds, parts[1:])
            if for_s < every_s:
                return Shape(kind, _range(parts[0]), every_s, for_s)
        if kind in ("steps", "users") and len(parts) == 1:
            levels = tuple(map(positive_number, parts[0].split(",")))
            if kind == "steps" or all(level.is_integer() for level in levels):
                return Shape(kind, levels)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}; the shapes are {FORMS}") from None
    raise argparse.ArgumentTypeError(f"{text!r} is no load shape; give {FORMS}, FOR shorter than EVERY")


def check_processes(shape: Shape, users: int, processes: int) -> None:
    """Refuse numbers of users that locust spreads unevenly: which of them rest goes by their numbers, which then have
    gaps, so that fewer would send than the shape says.

    Raises:
        BenchError: `shape` is of users, and not every process gets as many.
    """
    if not shape.is_open_loop and users % processes:
        raise BenchError(
            f"--shape of {users} users over {processes} processes; each needs as many users: give a number of "
            f"processes that divides {users}"
        )


def _range(text: str) -> tuple[float, ...]:
    match = _RANGE.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no range; give for example 10-200")
    return tuple(map(positive_number, match.groups()))
