"""An open loop: requests arrive when they are due, whatever became of the earlier ones.

In a closed loop a server that stalls for a second receives nothing meanwhile, and one slow answer stands for all that
would have been asked ("coordinated omission", G. Tene). Here a request's time counts from the moment when it was due.
"""

from __future__ import annotations

import random
import time
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# Requests without answer at once; what is due beyond is a failure. It keeps a dead server from filling the memory.
MAX_IN_FLIGHT = 2000
# What a user's arrivals are seeded with lies this far apart between processes, farther than the seeds of repeated runs:
# those would have the moments of another run in common, and agree more than they should.
SEEDS_OF_A_PROCESS = 1 << 40


class Arrivals:
    """When the requests of one user are due: a Poisson process, which independent ones of many users add up to.

    Args:
        rate: requests a second, on average.
        seed: of the gaps, which are exponentially distributed.
        begin_s: where the clock stands, of `time.perf_counter`.
    """

    def __init__(self, rate: float, seed: int, begin_s: float) -> None:
        self._rate = rate
        self._random = random.Random(seed)
        self._due_s = begin_s

    def next_s(self) -> float:
        """When the next request is due. It does not move when nobody asked in time."""
        self._due_s += self._random.expovariate(self._rate)
        return self._due_s

    def is_kept(self, share: float) -> bool:
        """Whether the request that is due now is sent, where only a `share` of them, 0 to 1, is.

        Thinning makes a Poisson process whose rate changes from one with the highest rate (Lewis and Shedler, 1979).
        """
        return share >= 1 or self._random.random() < share


@dataclass
class InFlight:
    """The requests that were due and have no answer yet, and how late they were sent.

    Attributes:
        offered: requests that were due in the window.
        lags_ms: how long after it was due each of them was sent: the fault of the load generator alone.
    """

    offered: int = 0
    lags_ms: list[float] = field(default_factory=list)
    _due: dict[int, tuple[str, float]] = field(default_factory=dict)
    _next: int = 0
    _reported: tuple[int, int] = (0, 0)

    def __len__(self) -> int:
        return len(self._due)

    def open_window(self) -> None:
        """Count from here on."""
        self.offered, self.lags_ms, self._reported = 0, [], (0, 0)

    def depart(self, model: str, due_s: float) -> int:
        """Note a request that is sent now; returns what `arrive` wants."""
        self.offered += 1
        self.lags_ms.append((time.perf_counter() - due_s) * 1000)
        self._next += 1
        self._due[self._next] = (model, due_s)
        return self._next

    def refuse(self) -> None:
        """Note a request that was due and is not sent."""
        self.offered += 1

    def arrive(self, ticket: int) -> None:
        """Note its answer."""
        del self._due[ticket]

    def waiting(self) -> list[tuple[str, float]]:
        """Model and age in milliseconds of every request without answer."""
        now_s = time.perf_counter()
        return [(model, (now_s - due_s) * 1000) for model, due_s in self._due.values()]

    def oldest_s(self) -> float:
        """When the request was due that waits longest; now, where none does."""
        return min((due_s for _, due_s in self._due.values()), default=time.perf_counter())

    def summary(self, window_s: float) -> dict[str, float]:
        """What was offered, and how punctually, for JSON."""
        lags = self.lags_ms or [0.0]
        return {
            "offered_per_s": self.offered / window_s,
            "lag_ms_p99": float(np.percentile(lags, 99, method="inverted_cdf")),
            "lag_ms_max": max(lags),
        }

    def report(self) -> dict[str, Any]:
        """What was offered since the last report, for `absorb` in another process."""
        offered, lags = self._reported
        self._reported = (self.offered, len(self.lags_ms))
        return {"offered": self.offered - offered, "lags_ms": array("d", self.lags_ms[lags:]).tobytes()}

    def absorb(self, report: Mapping[str, Any]) -> None:
        """Add another process's report."""
        self.offered += report["offered"]
        self.lags_ms.extend(array("d", report["lags_ms"]))
