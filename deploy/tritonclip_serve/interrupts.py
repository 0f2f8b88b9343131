"""Turns the signals that ask a program to end into one exception, so that it ends in order."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def raise_on_signals() -> Iterator[None]:
    """Raise KeyboardInterrupt in the block on the first SIGINT or SIGTERM; main thread only."""
    before = {number: signal.signal(number, _interrupt) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_signals() -> None:
    """Let nothing break in on what follows, inside `raise_on_signals`."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def call_on_signals(hurry: Callable[[], None]) -> None:
    """From now on let SIGINT and SIGTERM do this instead, inside `raise_on_signals`."""
    for number in _SIGNALS:
        signal.signal(number, lambda *_: hurry())


def _interrupt(number: int, frame: FrameType | None) -> None:
    del number, frame
    # A second signal must not break in on the stopping that the first one asked for.
    ignore_signals()
    raise KeyboardInterrupt
