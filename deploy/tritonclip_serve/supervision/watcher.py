"""Watches the processes of one running server: sees at once what died, and within two seconds what hangs."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tritonclip_serve.process import stat_fields
from tritonclip_serve.supervision.boards import Board, Reading, find_board
from tritonclip_serve.supervision.events import Cause
from tritonclip_serve.supervision.judgement import IDLE_CORES, TICK_S, Clock, exit_cause, hang
from tritonclip_serve.supervision.stubs import Stub, StubFinder

_SLOW_TICK_S = 1.0
_TOGETHER_S = 0.01
# Triton gives a model that it unloads a second or two to end.
_RETIREMENT_S = 15.0
# Of /proc/PID/stat after the name.
_STATE, _USER_TICKS, _SYSTEM_TICKS, _RESIDENT_PAGES, _EXIT_CODE = 0, 11, 12, 21, -1
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGESIZE")
_MB = 1_000_000


@dataclass(frozen=True)
class Death:
    """A process that has ended, or was ended because it hung."""

    stub: Stub
    cause: Cause
    seen_at: float


@dataclass
class _Usage:
    """What a process computes.

    Attributes:
        cores: how many it used between the last two slow ticks.
        used_s: seconds of a processor that it used so far.
    """

    cores: float = 0.0
    used_s: float = 0.0

    def measure(self, fields: list[str], seconds: float) -> None:
        used_s = (int(fields[_USER_TICKS]) + int(fields[_SYSTEM_TICKS])) / _TICKS_PER_S
        self.cores, self.used_s = (used_s - self.used_s) / seconds, used_s


@dataclass
class _Watched:
    """A process under watch.

    Attributes:
        settled: whether its model has been loaded; before, nobody judges whether it hangs.
        doomed: why it was killed here.
    """

    stub: Stub
    pidfd: int | None
    board: Board | None = None
    settled: bool = False
    doomed: Cause | None = None
    usage: _Usage = field(default_factory=_Usage)

    def reading(self) -> Reading | None:
        return self.board.read() if self.board else None

    def close(self) -> None:
        if self.pidfd is not None:
            os.close(self.pidfd)
        if self.board:
            self.board.close()


class Watcher:
    """The stubs of one server, and the server itself.

    Args:
        server_pid: a child of this process.
        run_dir: the run's folder, with the boards.
        memory_limit_mb: a Python model whose process holds more is ended; None: no limit.
    """

    def __init__(self, server_pid: int, run_dir: Path, memory_limit_mb: float | None = None) -> None:
        self._server_pid = server_pid
        self._server_usage = _Usage()
        self._run_dir = run_dir
        self._memory_limit_mb = memory_limit_mb
        self._finder = StubFinder(server_pid)
        self._poll = select.poll()
        self._watched: dict[int, _Watched] = {}
        self._by_fd: dict[int, int] = {}
        self._unreaped: set[int] = set()
        self._retired: dict[int, float] = {}
        self._server_fd = _open_pidfd(server_pid)
        if self._server_fd is not None:
            self._poll.register(self._server_fd, select.POLLIN)
        self._clock = Clock(time.monotonic())
        self._slow_at = time.monotonic()
        self.look_for_stubs()
        self.settle()

    def close(self) -> None:
        """Stop watching."""
        for watched in self._watched.values():
            watched.close()
        self._watched.clear()
        if self._server_fd is not None:
            os.close(self._server_fd)

    def stubs(self) -> list[Stub]:
        """What is watched now."""
        return [watched.stub for watched in self._watched.values()]

    def absent(self, models: Collection[str]) -> list[Death]:
        """The deaths of those `models` that have no process: theirs ended before they were watched."""
        there = {watched.stub.model for watched in self._watched.values()}
        cause, now = Cause("ended", "ended before it was watched"), time.monotonic()
        return [Death(Stub(0, model, model), cause, now) for model in sorted(set(models) - there)]

    def leftovers(self) -> int:
        """Ended stubs that the server still holds on to, with their memory and threads."""
        self._unreaped = {pid for pid in self._unreaped if stat_fields(pid)}
        return len(self._unreaped)

    def look_for_stubs(self) -> None:
        """Watch the stubs that came since the last look."""
        for stub in self._finder.new():
            watched = _Watched(stub, _open_pidfd(stub.pid), find_board(self._run_dir, stub.pid))
            self._watched[stub.pid] = watched
            if watched.pidfd is not None:
                self._by_fd[watched.pidfd] = stub.pid
                self._poll.register(watched.pidfd, select.POLLIN)

    def settle(self, loading: Collection[str] = ()) -> None:
        """The models have been loaded, except for those that still are."""
        for watched in self._watched.values():
            watched.settled = watched.settled or watched.stub.model not in loading

    def is_idle(self) -> bool:
        """Whether no process with a board is at work."""
        readings = (watched.reading() for watched in self._watched.values())
        return not any(reading.busy_since for reading in readings if reading is not None)

    def retire(self, models: Collection[str]) -> None:
        """Watch the present processes of some models no more: their end is asked for."""
        for watched in list(self._watched.values()):
            if watched.stub.model in models:
                self._forget(watched)
                self._retired[watched.stub.pid] = time.monotonic() + _RETIREMENT_S

    def wait(self) -> list[Death]:
        """Return after a tick, or at once when something has ended, with the stubs that have."""
        events = self._poll.poll(TICK_S * 1000)
        if events:
            # Processes that die together are revived together.
            time.sleep(_TOGETHER_S)
            events = self._poll.poll(0)
        now = time.monotonic()
        dead = {self._by_fd[fd] for fd, _ in events if fd in self._by_fd}
        if (passed := now - self._slow_at) >= _SLOW_TICK_S:
            self._slow_at = now
            self._slow_tick(now, passed)
        judge_hearts = self._clock.tick(now)
        return [
            death
            for pid in list(self._watched)
            if (death := self._look(pid, now, judge_hearts, pid in dead)) is not None
        ]

    def server_cause(self) -> Cause | None:
        """A server that is stopped by a signal; whether it has ended, its parent knows."""
        fields = stat_fields(self._server_pid)
        return hang(fields[_STATE], None, 0.0, judge_hearts=False) if fields else None

    def server_computes(self) -> bool:
        """Whether the server itself used a processor of late, as one does that is only slow to answer."""
        return self._server_usage.cores > IDLE_CORES

    def _slow_tick(self, now: float, passed: float) -> None:
        self.look_for_stubs()
        self._end_retired(now)
        if fields := stat_fields(self._server_pid):
            self._server_usage.measure(fields, passed)
        for pid, watched in self._watched.items():
            if watched.board is None:
                watched.board = find_board(self._run_dir, pid)
            if fields := stat_fields(pid):
                watched.usage.measure(fields, passed)

    def _end_retired(self, now: float) -> None:
        """End processes that were to end by themselves, but are stopped or hang."""
        for pid, deadline in list(self._retired.items()):
            fields = stat_fields(pid)
            if not fields or fields[_STATE] in "ZX":
                del self._retired[pid]
            elif now > deadline:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _look(self, pid: int, now: float, judge_hearts: bool, has_ended: bool) -> Death | None:
        watched = self._watched[pid]
        fields = stat_fields(pid)
        if has_ended or not fields or fields[_STATE] in "ZX":
            return self._bury(watched, fields, now)
        # While it loads, Triton itself waits for it, and takes ten seconds to notice that it was killed.
        cause = None
        if watched.settled:
            cause = hang(fields[_STATE], watched.reading(), now, judge_hearts, watched.usage.cores)
        cause = cause or self._greed(fields)
        if cause is not None and watched.doomed is None:
            watched.doomed = cause
            # Not SIGCONT: a model that Triton has given up takes the server with it when it wakes.
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return None

    def _bury(self, watched: _Watched, fields: list[str], now: float) -> Death:
        cause = watched.doomed or _ended(fields)
        death = Death(watched.stub, cause, now)
        if watched.board:
            watched.board.remove()
        self._forget(watched)
        return death

    def _forget(self, watched: _Watched) -> None:
        if watched.pidfd is not None:
            self._poll.unregister(watched.pidfd)
            del self._by_fd[watched.pidfd]
        watched.close()
        del self._watched[watched.stub.pid]
        self._unreaped.add(watched.stub.pid)

    def _greed(self, fields: list[str]) -> Cause | None:
        held_mb = int(fields[_RESIDENT_PAGES]) * _PAGE / _MB
        if self._memory_limit_mb is None or held_mb <= self._memory_limit_mb:
            return None
        return Cause("memory", f"held {held_mb:.0f} MB of memory, limit {self._memory_limit_mb:.0f} MB")


def _ended(fields: list[str]) -> Cause:
    """Triton collects its children late, so that the exit code can still be read as a rule."""
    return exit_cause(int(fields[_EXIT_CODE])) if fields else Cause("ended", "ended")


def _open_pidfd(pid: int) -> int | None:
    """None where the system has no such thing, or the process has gone; the look at each tick remains."""
    try:
        return os.pidfd_open(pid)
    except (OSError, AttributeError):
        return None
