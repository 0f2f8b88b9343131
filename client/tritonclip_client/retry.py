"""Deadlines, and repeating a request for as long as that is useful."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .causes import Cause
from .errors import ClipError, DeadlineExceededError, deadline_exceeded
from .steps import CallFlow, Pause, Rpc

if TYPE_CHECKING:
    from .patience import Patience


class Deadline:
    """The end of a whole call, however many requests and repetitions it takes."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._started = time.monotonic()

    def elapsed(self) -> float:
        """Seconds since the call began."""
        return time.monotonic() - self._started

    def remaining(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.timeout_s - self.elapsed())

    def check(self) -> None:
        """Raise `DeadlineExceededError` if the time is over."""
        if not self.remaining():
            raise deadline_exceeded(self.timeout_s)


def call(rpc: Rpc, patience: Patience) -> CallFlow[Any]:
    """Send one request, and again while its failures pass by themselves, patience allows it and time is left."""
    patience.begin()
    rpc.deadline.check()
    failures = stalls = 0
    while True:
        attempt = replace(rpc, limit_s=patience.attempt_s(rpc, stalls))
        started = time.monotonic()
        try:
            answer = yield attempt
        except ClipError as error:
            if isinstance(error, DeadlineExceededError) and rpc.deadline.remaining():
                error.cause = Cause.STALLED
                stalls += 1
            pause_s = patience.pause_s(error, rpc, failures)
            if pause_s is None:
                raise
            failures += 1
            yield Pause(pause_s)
            # The last error says more than that the time is over.
            if not rpc.deadline.remaining():
                raise
        else:
            patience.answered(rpc, time.monotonic() - started)
            return answer
