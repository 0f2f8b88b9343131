"""One measurement over several processes: the workers send their raw samples to locust's master, which measures."""

from __future__ import annotations

import time
from typing import Any

import gevent
from locust.env import Environment
from locust.runners import STATE_MISSING, WORKER_REPORT_INTERVAL

from tritonclip_bench.load.loadrun import READY_S
from tritonclip_bench.load.window import Window

# Messages of the master to its workers, the answer to the last, and the part of locust's own reports that is ours.
OPEN, CLOSE, CLOSED = "tritonclip_open", "tritonclip_close", "tritonclip_closed"
REPORT = "tritonclip"
# For the workers' last reports.
LAST_S = 10.0
POLL_S = 0.05


class WorkersLoad:
    """The users of all workers, as the master sees them (`measurement.Load`)."""

    # As often as locust's workers report.
    news_s = WORKER_REPORT_INTERVAL

    def __init__(self, environment: Environment, window: Window) -> None:
        # Locust's runners and hooks carry no types.
        runner: Any = environment.runner
        self._runner = runner
        self._window = window
        self._measured: set[str] = set()
        self._closed: set[str] = set()
        events: Any = environment.events
        events.worker_report.add_listener(self._take_report)
        self._runner.register_message(CLOSED, self._take_last)

    def wait_until_running(self) -> None:
        """Return when all workers have all their users, which locust does not wait for."""
        deadline_s = time.monotonic() + READY_S
        while self._runner.user_count < self._runner.target_user_count and time.monotonic() < deadline_s:
            gevent.sleep(POLL_S)

    def open(self) -> None:
        """Count from here on, in every process."""
        self._closed.clear()
        self._measured = self._alive()
        self._window.open()
        self._runner.send_message(OPEN)

    def close(self) -> str | None:
        """Get the workers' last reports; a dead worker loses only its last seconds."""
        self._runner.send_message(CLOSE)
        deadline_s = time.monotonic() + LAST_S
        while time.monotonic() < deadline_s and not self._alive() <= self._closed:
            gevent.sleep(POLL_S)
        missing = self._measured - self._closed
        return f"{len(missing)} of {len(self._measured)} load generators ended before the run" if missing else None

    def _alive(self) -> set[str]:
        return {client.id for client in self._runner.clients.all if client.state != STATE_MISSING}

    def _take_report(self, client_id: str, data: dict[str, Any]) -> None:
        if REPORT in data:
            self._window.absorb(client_id, data[REPORT], last=False)

    def _take_last(self, msg: Any, **_: Any) -> None:
        if msg.node_id not in self._closed:
            self._window.absorb(msg.node_id, msg.data, last=True)
            self._closed.add(msg.node_id)


class Worker:
    """A worker's part: measures when the master says so, and reports."""

    def __init__(self, environment: Environment, window: Window) -> None:
        runner: Any = environment.runner
        self._runner = runner
        self._window = window
        events: Any = environment.events
        events.report_to_master.add_listener(self._report)
        # A worker that is asked to end sends what it has first.
        events.test_stopping.add_listener(self._close)
        self._runner.register_message(OPEN, self._open)
        self._runner.register_message(CLOSE, self._close)

    def _open(self, **_: Any) -> None:
        self._window.open()

    def _close(self, **_: Any) -> None:
        if self._window.recorder.recording:
            self._window.close()
            self._runner.send_message(CLOSED, self._window.report())

    def _report(self, data: dict[str, Any], **_: Any) -> None:
        # After the window is closed the last report has been sent.
        if self._window.recorder.recording or not self._window.recorder.window_s:
            data[REPORT] = self._window.report()
