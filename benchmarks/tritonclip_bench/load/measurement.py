"""When a locust run is measured: after the ramp-up and the warm-up, for a set time or to the run's end."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from dataclasses import dataclass
from typing import Any, Protocol

import gevent
from locust.env import Environment

from tritonclip_bench.files import write_json
from tritonclip_bench.load.loadrun import INTERRUPTED
from tritonclip_bench.load.samples import write_samples
from tritonclip_bench.load.watch import PATIENCE_S, is_live
from tritonclip_bench.load.window import Window
from tritonclip_bench.server.watch import ServerWatch

WATCH_EVERY_S = 0.5


class Load(Protocol):
    """Where the users run: in this process, or in workers.

    Attributes:
        news_s: a line with the current rate comes that often.
    """

    news_s: float

    def wait_until_running(self) -> None:
        """Return when all users run."""

    def open(self) -> None:
        """Count from here on."""

    def close(self) -> str | None:
        """Get what was counted into this process's window, which is closed by the caller; returns what is missing."""


class OwnLoad:
    """The users of this process."""

    news_s = 2.0

    def __init__(self, window: Window) -> None:
        self._window = window

    def wait_until_running(self) -> None:
        """They do."""

    def open(self) -> None:
        """Count from here on."""
        self._window.open()

    def close(self) -> str | None:
        """It is in the window already."""
        return None


@dataclass(frozen=True)
class Test:
    """One run of the users.

    Attributes:
        options: `warmup` and `measure` in seconds or None, `progress`, `results` and `samples`, paths or None.
        address: the server's.
        is_open_loop: whether requests are sent when they are due.
        server: reads what the server counts.
    """

    options: Namespace
    address: str
    is_open_loop: bool
    server: ServerWatch


class Measurement:
    """Opens and closes a window on locust's events, shows progress, notices a dead server, writes the results.

    Args:
        environment: locust's.
        window: filled by `load`.
    """

    def __init__(self, environment: Environment, window: Window, load: Load) -> None:
        self._environment = environment
        self._window = window
        self._load = load
        # The run that is being measured; None while idle.
        self._test: Test | None = None
        self._pending: list[Any] = []

    def hook_in(self) -> None:
        """Listen to the runs."""
        # Locust's hooks carry no types.
        events: Any = self._environment.events
        events.spawning_complete.add_listener(self._warm_up)
        events.test_stopping.add_listener(self._end)
        events.quitting.add_listener(self._quit)

    def expect(self, test: Test) -> None:
        """Measure the run that begins now as `test` says."""
        self._test = test
        self._window.forget()

    def _warm_up(self, **_: Any) -> None:
        # In locust's web interface the users may be changed; the measurement then begins anew.
        self._forget_pending()
        if self._test is not None:
            self._pending += [gevent.spawn(self._run, self._test), gevent.spawn(self._watch, self._test)]

    def _run(self, test: Test) -> None:
        self._load.wait_until_running()
        runner: Any = self._environment.runner
        self._say(f"{runner.user_count} users run; {test.options.warmup} s of warm-up")
        gevent.sleep(test.options.warmup)
        # Locust's own table starts anew too, so that it and the results cover the same requests.
        runner.stats.reset_all()
        test.server.begin()
        self._load.open()
        if test.options.progress:
            self._pending.append(gevent.spawn(self._show_progress))
        if test.options.measure is not None:
            gevent.sleep(test.options.measure)
            self._finish()
            self._stop_users()

    def _watch(self, test: Test) -> None:
        """End the run where the server is gone, in the warm-up too."""
        while True:
            gevent.sleep(WATCH_EVERY_S)
            since_s = self._window.failing_since_s()
            if since_s is not None and time.perf_counter() - since_s >= PATIENCE_S and not is_live(test.address):
                self._finish()
                self._stop_users()
                return

    def _end(self, **_: Any) -> None:
        self._finish()

    def _quit(self, **_: Any) -> None:
        # A run that ends in time has closed its window by now.
        if self._window.recorder.recording:
            self._finish(interrupted=True)

    def interrupt(self) -> None:
        """Write what was measured so far and end the run."""
        self._quit()
        self._stop_users()

    def _finish(self, *, interrupted: bool = False) -> None:
        """Close the window, where it is open, and write what it holds."""
        self._forget_pending()
        test, recorder = self._test, self._window.recorder
        self._test = None
        if test is None:
            return
        since_s = self._window.failing_since_s()
        gone_s = None if since_s is None or is_live(test.address) else max(0.0, since_s - recorder.begun_s)
        broken = None
        if interrupted:
            broken = f"{INTERRUPTED} after {recorder.second():.1f} s"
        elif gone_s is not None:
            broken = f"the server stopped answering after {gone_s:.1f} s"
        results = None
        if recorder.recording:
            missing = self._load.close()
            broken = broken or missing
            self._window.close(until_s=gone_s)
            test.server.end()
            results = self._window.results()
        if results is not None:
            self._write(test, results, broken)
            return
        print(f"error: {broken or 'the run ended'}; that was before measuring began", file=sys.stderr)
        self._environment.process_exit_code = 1

    def _write(self, test: Test, results: dict[str, Any], broken: str | None) -> None:
        options = test.options
        results |= {"broken": broken, **test.server.results(results)}
        if not test.is_open_loop:
            results["open_loop"] = {}
        if options.samples is not None:
            write_samples(options.samples, self._window.recorder.samples())
            results["samples"] = options.samples.name
        if options.results is not None:
            write_json(options.results, results)

    def _stop_users(self) -> None:
        runner: Any = self._environment.runner
        if self._environment.web_ui is None:
            runner.quit()
        else:
            runner.stop()

    def _forget_pending(self) -> None:
        for greenlet in self._pending:
            # The one that runs now ends by itself.
            if greenlet is not gevent.getcurrent():
                greenlet.kill(block=False)
        self._pending.clear()

    def _show_progress(self) -> None:
        gevent.sleep(self._load.news_s)
        before_s, before = 0.0, 0
        while self._window.recorder.recording:
            elapsed_s, items, failures = self._window.recorder.progress()
            rate = (items - before) / (elapsed_s - before_s)
            self._say(f"{elapsed_s:4.0f} s measured: {rate:8.1f} items/s, {failures} failures")
            before_s, before = elapsed_s, items
            gevent.sleep(self._load.news_s)

    def _say(self, line: str) -> None:
        if self._test is not None and self._test.options.progress:
            print(f"  {line}", file=sys.stderr, flush=True)
