"""Deadlines, and repeating a call that met an unavailable server."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .errors import ServerUnavailableError, deadline_exceeded
from .steps import CallFlow, Pause, Rpc


class Deadline:
    """The end of a whole call, however many requests and repetitions it takes."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._end = time.monotonic() + timeout_s

    def remaining(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self._end - time.monotonic())

    def check(self) -> None:
        """Raise `DeadlineExceededError` if the time is over."""
        if not self.remaining():
            raise deadline_exceeded(self.timeout_s)


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff: each delay doubles up to a limit, and is drawn from its upper half.

    The jitter keeps clients that failed together from coming back together.
    """

    retries: int = 4
    first_delay_s: float = 0.1
    max_delay_s: float = 2.0

    def delays(self) -> Iterator[float]:
        """The pause before each repetition, in seconds."""
        delay_s = self.first_delay_s
        for _ in range(self.retries):
            yield delay_s * random.uniform(0.5, 1.0)
            delay_s = min(2 * delay_s, self.max_delay_s)


def call(rpc: Rpc, policy: RetryPolicy) -> CallFlow[Any]:
    """Make one call and repeat it while the server is unavailable, the policy allows it and time is left."""
    delays = policy.delays()
    while True:
        rpc.deadline.check()
        try:
            return (yield rpc)
        except ServerUnavailableError:
            delay_s = next(delays, None)
            if delay_s is None or delay_s >= rpc.deadline.remaining():
                raise
        yield Pause(delay_s)
