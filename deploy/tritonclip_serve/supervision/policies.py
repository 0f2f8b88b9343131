"""When to try again, and when to give up: numbers and no clocks, so that tests can tell the time."""

from __future__ import annotations

from collections import deque

# Restarts of tritonserver within a minute.
DEFAULT_RESTART_LIMIT = 5
_FIRST_S, _FACTOR, _MOST_S = 0.25, 2.0, 30.0


class Backoff:
    """Growing pauses between attempts: none before the first, then 0.25 s, twice as long each time, at most 30 s.

    Args:
        calm_s: so long after the last attempt it begins anew.
    """

    def __init__(self, calm_s: float = 60.0) -> None:
        self._calm_s = calm_s
        self._attempts = 0
        self._last: float | None = None

    def pause(self, now: float) -> float:
        """Seconds to wait before the attempt that is due at `now`, which this call counts."""
        if self._last is not None and now - self._last > self._calm_s:
            self._attempts = 0
        pause = 0.0 if self._attempts == 0 else min(_MOST_S, _FIRST_S * _FACTOR ** min(self._attempts - 1, 16))
        self._attempts += 1
        self._last = now + pause
        return pause


class RestartLimit:
    """Gives up where there are more than `count` deaths within `window_s` seconds; `count` 0: at the first one."""

    def __init__(self, count: int, window_s: float = 60.0) -> None:
        self.count = count
        self.window_s = window_s
        self._deaths: deque[float] = deque()

    def exceeded(self, now: float) -> bool:
        """Count a death at `now`; True: it is one too many."""
        self._deaths.append(now)
        while now - self._deaths[0] > self.window_s:
            self._deaths.popleft()
        return len(self._deaths) > self.count
