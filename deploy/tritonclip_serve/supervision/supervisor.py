"""Keeps one tritonserver and its Python models up, and says so when something had to be started again."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from tritonclip_serve import readiness
from tritonclip_serve.errors import ServeError, ServerDiedError
from tritonclip_serve.repository import python_models, with_dependents
from tritonclip_serve.server import TritonServer
from tritonclip_serve.supervision.control import ModelControl
from tritonclip_serve.supervision.drain import drain
from tritonclip_serve.supervision.events import Cause, Events
from tritonclip_serve.supervision.judgement import PATIENCE
from tritonclip_serve.supervision.policies import DEFAULT_RESTART_LIMIT, Backoff, RestartLimit
from tritonclip_serve.supervision.revival import Revival
from tritonclip_serve.supervision.watcher import Watcher
from tritonclip_serve.watch import exit_cause

# A dead process that Triton does not let go of keeps threads and memory.
MOST_LEFTOVERS = 64
_UPKEEP_S = 1.0
_LIVE_EVERY_S, _LIVE_TIMEOUT_S, _LIVE_MISSES = 5.0, 5.0, 2


@dataclass(frozen=True)
class Limits:
    """When to give up, and what a model may hold.

    Attributes:
        restarts: of tritonserver within a minute; 0: none.
        model_memory_mb: resident memory of one Python model's process; None: no limit.
    """

    restarts: int = DEFAULT_RESTART_LIMIT
    model_memory_mb: float | None = None


class Supervisor:
    """Supervises a server that is ready; its counters and its truth go to the server's metrics port.

    Args:
        server: as `wait_ready` left it. Nobody else may start or stop it while `run` runs.
        limits: when to give up.
        events: where to tell what happened.
    """

    def __init__(self, server: TritonServer, limits: Limits | None = None, events: Events | None = None) -> None:
        self.events = events or Events()
        self._server = server
        self._limits = limits or Limits()
        self._limit = RestartLimit(self._limits.restarts)
        self._revival: Revival | None = None
        self._draining = False
        self._lost_calls = False
        server.reports.counters = self.events.prometheus
        server.reports.draining = lambda: self._draining
        server.reports.unusable = self.unusable

    def unusable(self) -> Collection[str]:
        """Models that cannot answer now, ensembles among them: a process died or hung, and is not back yet."""
        revival = self._revival
        models = revival.models() if revival is not None else ()
        return with_dependents(self._server.repository, models) if models else ()

    def drain(self, seconds: float) -> None:
        """After `run` was interrupted: let no new calls in, and wait so long for those that run; stops nothing."""
        self._draining = True
        server, began = self._server, time.monotonic()
        if not server.is_ready or server.run_dir is None or server.pid is None:
            return
        watcher = Watcher(server.pid, server.run_dir)
        try:
            done = drain(
                self._control(watcher), server.repository, server.run_dir, watcher.is_idle, self._lost_calls, seconds
            )
        finally:
            watcher.close()
        passed = time.monotonic() - began
        if not done or server.poll() is not None:
            self.events.say(f"server tritonserver: not drained within {passed:.2f} s, calls that still run are lost")
        else:
            self.events.say(f"server tritonserver: drained in {passed:.2f} s")

    def run(self) -> None:
        """Supervise until the server cannot be kept; call it from the thread that started the server.

        Raises:
            ServerDiedError: it ended more often than the limit allows.
        """
        while True:
            if not self._server.key_is_hidden:
                self.events.say(
                    "the key to model control can be read in tritonserver's arguments by users of this machine"
                )
            cause = self._watch()
            self._restart(cause, time.monotonic())

    def _control(self, watcher: Watcher) -> ModelControl:
        server = self._server
        probes = readiness.read_probes(server.repository)
        return ModelControl(
            server.access, server.grpc_address, server.control_headers, probes, computes=watcher.server_computes
        )

    def _watch(self) -> Cause:
        """Revive models until tritonserver has ended; returns why it did."""
        server = self._server
        assert server.pid is not None
        assert server.run_dir is not None
        watcher = Watcher(server.pid, server.run_dir, self._limits.model_memory_mb)
        control = self._control(watcher)
        self._revival = Revival(control, self.events, server.cut_connections, watcher.retire)
        pulse = Pulse(lambda: control.is_live(_LIVE_TIMEOUT_S))
        try:
            return self._watch_with(watcher, self._revival, pulse)
        finally:
            self._lost_calls = self._revival.lost_calls
            self._revival.close()
            self._revival = None
            pulse.close()
            control.close()
            watcher.close()

    def _watch_with(self, watcher: Watcher, revival: Revival, pulse: Pulse) -> Cause:
        upkeep_at = 0.0
        expected = python_models(self._server.repository)
        while True:
            deaths = watcher.wait()
            # When the server dies its models die with it.
            if (status := self._server.poll()) is not None:
                return Cause(exit_cause(status), exit_cause(status))
            revival.add(deaths)
            revival.step(time.monotonic())
            if revival.is_back():
                self._server.close_shared_memory()
                watcher.look_for_stubs()
                watcher.settle(revival.models())
            cause = watcher.server_cause() or revival.stuck
            if time.monotonic() >= upkeep_at:
                upkeep_at = time.monotonic() + _UPKEEP_S
                revival.add(watcher.absent(expected - set(revival.models())))
                self._server.cap_log()
                self._server.close_shared_memory()
                cause = cause or pulse.step(time.monotonic(), watcher.server_computes()) or _too_many(watcher)
            if cause is not None:
                self._server.kill()
                return cause

    def _restart(self, cause: Cause, since: float) -> None:
        """Bring the server back, however often it takes within the limit."""
        server = self._server
        # At once the first time, however often it died before: the limit bounds that.
        failures = Backoff()
        while True:
            if self._limit.exceeded(time.monotonic()):
                raise ServerDiedError(self._given_up(cause))
            self.events.say(f"server tritonserver: {cause.phrase}; starting it again")
            pause = failures.pause(time.monotonic())
            try:
                server.end_process()
                time.sleep(pause)
                server.start()
                server.wait_ready()
            except (ServeError, OSError) as error:
                reason = str(error).splitlines()[0]
                self.events.failed("server", "tritonserver", cause, reason, pause)
                cause = Cause("start failed", f"it did not start: {reason}")
            else:
                self.events.restarted("server", "tritonserver", cause, time.monotonic() - since, "started again")
                return

    def _given_up(self, cause: Cause) -> str:
        limit = self._limit
        often = f", more than {limit.count} times within {limit.window_s:g} s" if limit.count else ""
        return (
            f"tritonserver ended by itself ({cause.phrase}{often}): {self._server.last_words()}\n"
            f"  the whole log is in {self._server.log_path}"
        )


class Pulse:
    """Asks a server now and then whether it is alive; gives it up when it was silent several times in a row.

    One that computes meanwhile gets more patience: in a flood of callers the question waits its turn.
    """

    def __init__(self, ask: Callable[[], bool]) -> None:
        self._ask = ask
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pulse")
        self._asked: Future[bool] | None = None
        self._next = 0.0
        self._misses = 0

    def step(self, now: float, computes: bool = False) -> Cause | None:
        """Look at the last answer and ask again; why the server counts as hung, or None."""
        if self._asked is not None and self._asked.done():
            with suppress(Exception):
                self._misses = 0 if self._asked.result() else self._misses + 1
            self._asked = None
        if self._asked is None and now >= self._next:
            self._next = now + _LIVE_EVERY_S
            self._asked = self._pool.submit(self._ask)
        if self._misses < _LIVE_MISSES * (PATIENCE if computes else 1):
            return None
        return Cause("hung", f"it did not answer {self._misses} times in a row")

    def close(self) -> None:
        """Ask no more; an answer that is awaited comes soon, from a server that has ended."""
        self._pool.shutdown(cancel_futures=True)


def _too_many(watcher: Watcher) -> Cause | None:
    left = watcher.leftovers()
    if left <= MOST_LEFTOVERS:
        return None
    return Cause("leftovers", f"it holds on to {left} dead models, with their threads and memory")
