"""What argparse reads: durations, counts, numbers and shares."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable

_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?")


def seconds(text: str) -> int:
    """Whole seconds of a duration such as 30, 30s, 5m or 1h30m.

    Raises:
        argparse.ArgumentTypeError: not a duration.
    """
    match = _DURATION.fullmatch(text)
    if not text or match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration; give for example 30s, 5m or 1h30m")
    hours, minutes, rest = (int(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + rest


def positive_seconds(text: str) -> int:
    """As `seconds`, and more than none."""
    duration_s = seconds(text)
    if duration_s < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; give at least 1s")
    return duration_s


def count(what: str) -> Callable[[str], int]:
    """An argparse type: a whole number from 1, of `what`."""

    def parse(text: str) -> int:
        if not (text.isdecimal() and int(text) > 0):
            raise argparse.ArgumentTypeError(f"{text!r} {what}; give a whole number from 1")
        return int(text)

    return parse


def positive_number(text: str) -> float:
    """A finite number above 0.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} given; give a number above 0")
    return number


def share(text: str) -> float:
    """A share of 0 to 1, or per cent, such as 0.1%.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} given; give a share from 0 to 1, or per cent, such as 0.1%")
    return value
