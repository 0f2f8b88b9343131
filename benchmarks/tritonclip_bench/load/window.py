"""Everything that one process measures between two moments, and how a process collects what others measured."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tritonclip_bench.load.clienttimes import ClientTimes
from tritonclip_bench.load.recorder import Recorder
from tritonclip_bench.load.watch import Watch
from tritonclip_bench.traffic.arrivals import InFlight


@dataclass
class Window:
    """The measured part of a load test.

    Attributes:
        recorder: the requests and the CPU use.
        in_flight: of an open loop.
        times: what requests cost the load generator.
        watch: whether the server is there.
        sent: what the requests are made of, for the results.
    """

    recorder: Recorder = field(default_factory=Recorder)
    in_flight: InFlight = field(default_factory=InFlight)
    times: ClientTimes = field(default_factory=ClientTimes)
    watch: Watch = field(default_factory=Watch)
    sent: dict[str, Any] = field(default_factory=dict)
    # Of other processes that send: since when they fail, of this process's clock; None: they do not.
    _others_fail: dict[str, float | None] = field(default_factory=dict)

    def open(self) -> None:
        """Count from here on."""
        self.in_flight.open_window()
        self.times.clear()
        self.recorder.begin()

    def close(self, until_s: float | None = None) -> None:
        """Count no more; from the window's second `until_s` on nothing counts, where it is given."""
        self.recorder.end(self.in_flight.waiting() if until_s is None else (), until_s)

    def forget(self) -> None:
        """Forget how an earlier test ended."""
        self._others_fail.clear()
        self.watch.failing_since_s = None

    def failing_since_s(self) -> float | None:
        """Since when nothing but UNAVAILABLE came back to any process, of `time.perf_counter`; None where it does."""
        if not self._others_fail:
            return self.watch.failing_since_s
        found = [since_s for since_s in self._others_fail.values() if since_s is not None]
        return max(found) if len(found) == len(self._others_fail) else None

    def results(self) -> dict[str, Any] | None:
        """What was measured, for JSON; None where nothing was."""
        results = self.recorder.results()
        if results is None:
            return None
        # Requests went on to be due after the moment at which the window was cut.
        offered = self.in_flight.summary(self.recorder.open_s)
        return {**results, "open_loop": offered, "client": self.times.summary(), **self.sent}

    def report(self) -> dict[str, Any]:
        """What was measured since the last report, for `absorb` in another process."""
        failing_s = None if self.watch.failing_since_s is None else time.perf_counter() - self.watch.failing_since_s
        return {
            "recorder": self.recorder.report(),
            "in_flight": self.in_flight.report(),
            "times": asdict(self.times),
            "sent": self.sent,
            "sends": bool(self.times.requests),
            "failing_s": failing_s,
        }

    def absorb(self, name: str, report: Mapping[str, Any], *, last: bool) -> None:
        """Add the report of another process; `name` tells them apart, the `last` one has the sums of all."""
        self.sent = report["sent"] or self.sent
        if report["sends"]:
            failing_s = report["failing_s"]
            self._others_fail[name] = None if failing_s is None else time.perf_counter() - failing_s
        if self.recorder.recording:
            self.recorder.absorb(name, report["recorder"])
            self.in_flight.absorb(report["in_flight"])
            if last:
                self.times.add(report["times"])
