"""The CPU time that a process and its machine used between two moments."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import psutil


@dataclass(frozen=True)
class CpuTimes:
    """Seconds since some moment in the past.

    Not `psutil.cpu_percent`, which remembers its last call by thread, and each greenlet counts as one.

    Attributes:
        at: of `time.perf_counter`.
        own: of this process.
        busy: of everything that ran on the machine.
        all: of all its cores together, busy or idle.
    """

    at: float
    own: float
    busy: float
    all: float

    @classmethod
    def now(cls, process: psutil.Process) -> CpuTimes:
        """Until now, of `process`."""
        own, machine = process.cpu_times(), psutil.cpu_times()
        # Linux counts the time of guests in `user` and `nice` already.
        everything = sum(machine) - getattr(machine, "guest", 0.0) - getattr(machine, "guest_nice", 0.0)
        idle = machine.idle + getattr(machine, "iowait", 0.0)
        return cls(time.perf_counter(), own.user + own.system, everything - idle, everything)

    def __sub__(self, earlier: CpuTimes) -> CpuTimes:
        """What was used since `earlier`."""
        return CpuTimes(self.at - earlier.at, self.own - earlier.own, self.busy - earlier.busy, self.all - earlier.all)


@dataclass
class CpuUse:
    """The load generator's CPU use in a window: of this process, or of others that put the load on the server."""

    process: psutil.Process = field(default_factory=psutil.Process)
    # Cores that each other process used, by its name.
    others: dict[str, float] = field(default_factory=dict)
    _begin: CpuTimes | None = None
    _end: CpuTimes | None = None

    def begin(self) -> None:
        """Open the window."""
        self.others.clear()
        self._begin, self._end = CpuTimes.now(self.process), None

    def end(self) -> None:
        """Close it."""
        self._end = CpuTimes.now(self.process)

    def cores(self) -> float:
        """Cores that this process used, so far or until the end."""
        used = self._used()
        return used.own / used.at if used.at else 0.0

    def summary(self) -> dict[str, float]:
        """For JSON: cores of the busiest process that sends, and of all; the busy share, 0 to 1, of this machine."""
        used = self._used()
        senders = list(self.others.values()) or [self.cores()]
        return {
            "client_cpu_cores": max(senders),
            "client_cpu_cores_total": sum(self.others.values()) + self.cores(),
            "client_processes": len(senders),
            "machine_cpu_share": used.busy / used.all if used.all else 0.0,
        }

    def _used(self) -> CpuTimes:
        if self._begin is None:
            return CpuTimes(0.0, 0.0, 0.0, 0.0)
        return (self._end or CpuTimes.now(self.process)) - self._begin
