"""Collects what a load test measures: every response time inside the window, and the load's own CPU use."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import psutil
from numpy.typing import NDArray

from tritonclip_bench.latency import summarize_ms


@dataclass
class Samples:
    """The requests of one entry point inside the window: times of the good ones, reasons of the others.

    `ages_ms` are of an open loop's requests without answer at the window's end. They belong to the percentiles, as the
    least that they will take: left out, a server that answers nothing any more would look fast.
    """

    latencies_ms: list[float] = field(default_factory=list)
    ages_ms: list[float] = field(default_factory=list)
    items: int = 0
    failures: Counter[str] = field(default_factory=Counter)

    def summary(self, window_s: float) -> dict[str, object]:
        """Rates, exact percentiles and failures, for JSON."""
        return {
            "requests": len(self.latencies_ms),
            "items": self.items,
            "requests_per_s": len(self.latencies_ms) / window_s,
            "items_per_s": self.items / window_s,
            "latency_ms": summarize_ms([*self.latencies_ms, *self.ages_ms]),
            "unanswered": len(self.ages_ms),
            "failures": self.failures.total(),
            "failure_reasons": dict(self.failures.most_common()),
        }


class Recorder:
    """Records between `begin` and `end`; what comes before or after is warm-up or shutdown.

    A request belongs to the window in which its answer arrives.
    """

    def __init__(self) -> None:
        self._samples: dict[str, Samples] = defaultdict(Samples)
        self._process = psutil.Process()
        self._begun_s: float | None = None
        self._window_s: float | None = None

    @property
    def recording(self) -> bool:
        """Whether the window is open."""
        return self._begun_s is not None and self._window_s is None

    def begin(self) -> None:
        """Open the window; what an earlier one holds is forgotten."""
        self._samples.clear()
        self._window_s = None
        self._begun_s = time.perf_counter()
        self._cpu_at_begin = _cpu_seconds(self._process)

    def add(self, model: str, latency_ms: float, items: int, failure: BaseException | None) -> None:
        """Take one request, if the window is open."""
        if not self.recording:
            return
        samples = self._samples[model]
        if failure is None:
            samples.latencies_ms.append(latency_ms)
            samples.items += items
        else:
            samples.failures[str(failure)] += 1

    def progress(self) -> tuple[float, int, int]:
        """Seconds since `begin`, items and failures so far."""
        elapsed_s = time.perf_counter() - self._begun_s if self._begun_s is not None else 0.0
        samples = self._samples.values()
        return elapsed_s, sum(s.items for s in samples), sum(s.failures.total() for s in samples)

    @property
    def window_s(self) -> float:
        """How long the window was open; 0 while it is."""
        return self._window_s or 0.0

    def end(self, waiting: Iterable[tuple[str, float]] = ()) -> None:
        """Close the window; nothing happens when it is not open.

        Args:
            waiting: of an open loop, model and age in milliseconds of the requests without answer.
        """
        if self._begun_s is None or self._window_s is not None:
            return
        self._window_s = time.perf_counter() - self._begun_s
        self._cpu_at_end = _cpu_seconds(self._process)
        for model, age_ms in waiting:
            self._samples[model].ages_ms.append(age_ms)

    def results(self) -> dict[str, object] | None:
        """The measured window, for JSON; None when there was none."""
        if self._window_s is None:
            return None
        return {
            "window_s": self._window_s,
            "total": self._total().summary(self._window_s),
            "by_model": {name: s.summary(self._window_s) for name, s in sorted(self._samples.items())},
            **self._cpu_use(self._window_s),
        }

    def _cpu_use(self, window_s: float) -> dict[str, float]:
        """Cores that this process used, and the busy share, 0 to 1, of all cores of its machine."""
        own_s, busy_s, all_s = self._cpu_at_end - self._cpu_at_begin
        return {"client_cpu_cores": own_s / window_s, "machine_cpu_share": busy_s / all_s if all_s else 0.0}

    def _total(self) -> Samples:
        total = Samples()
        for samples in self._samples.values():
            total.latencies_ms.extend(samples.latencies_ms)
            total.ages_ms.extend(samples.ages_ms)
            total.items += samples.items
            total.failures.update(samples.failures)
        return total


def _cpu_seconds(process: psutil.Process) -> NDArray[np.float64]:
    """Seconds since the start: of `process`, of everything that ran, of all cores together.

    Not `psutil.cpu_percent`, which remembers its last call by thread, and each greenlet counts as one.
    """
    own, machine = process.cpu_times(), psutil.cpu_times()
    # Linux counts the time of guests in `user` and `nice` already.
    everything = sum(machine) - getattr(machine, "guest", 0.0) - getattr(machine, "guest_nice", 0.0)
    idle = machine.idle + getattr(machine, "iowait", 0.0)
    return np.array([own.user + own.system, everything - idle, everything])
