"""When a locust run is measured: after the ramp-up and the warm-up, for a set time or to the run's end."""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import Any

import gevent
from locust.env import Environment
from locust.runners import LocalRunner

from tritonclip_bench.arrivals import InFlight
from tritonclip_bench.files import write_json
from tritonclip_bench.recorder import Recorder
from tritonclip_bench.server_watch import ServerWatch

PROGRESS_EVERY_S = 2.0


class Measurement:
    """Opens and closes a `Recorder`'s window on locust's events, shows progress, writes the results.

    Args:
        environment, runner: locust's.
        options: `warmup` and `measure` in seconds, `progress`, and `results`, a path or None.
        sent: what the requests are made of, for the results.
        in_flight: of an open loop.
        watch: of the server.
    """

    def __init__(
        self,
        environment: Environment,
        runner: LocalRunner,
        options: Namespace,
        sent: dict[str, object],
        in_flight: InFlight,
        watch: ServerWatch,
    ) -> None:
        # Locust's hooks carry no types.
        self._events: Any = environment.events
        self._runner = runner
        self._options = options
        self._sent = sent
        self._in_flight = in_flight
        self._watch = watch
        self._recorder = Recorder()
        self._pending: list[Any] = []

    def hook_in(self) -> None:
        """Listen to the run."""
        self._events.spawning_complete.add_listener(self._warm_up)
        self._events.request.add_listener(self._add)
        self._events.test_stopping.add_listener(self._end)

    def _warm_up(self, **_: Any) -> None:
        self._say(f"{self._runner.user_count} users run; {self._options.warmup} s of warm-up")
        self._forget_pending()
        self._pending.append(gevent.spawn_later(self._options.warmup, self._begin))

    def _begin(self) -> None:
        # Locust's own table starts anew too, so that it and the results tell of the same requests.
        self._runner.stats.reset_all()
        self._watch.begin()
        self._recorder.begin()
        self._in_flight.open_window()
        if self._options.measure is not None:
            gevent.spawn_later(self._options.measure, self._runner.quit)
        if self._options.progress:
            self._pending.append(gevent.spawn(self._show_progress))

    def _add(
        self,
        name: str,
        response_time: float,
        context: dict[str, Any],
        exception: BaseException | None = None,
        **_: Any,
    ) -> None:
        self._recorder.add(name, response_time, context["items"], exception, gave_up=context["gave_up"])

    def _end(self, **_: Any) -> None:
        # In locust's web interface another run may follow this one, or its users be changed.
        self._forget_pending()
        self._recorder.end(self._in_flight.waiting())
        results = self._recorder.results()
        if results is None:
            print("warning: the run ended before the warm-up did; nothing was measured", file=sys.stderr)
        elif self._options.results is not None:
            self._watch.end()
            open_loop = {} if self._options.rate is None else self._in_flight.summary(self._recorder.window_s)
            write_json(
                self._options.results,
                {**results, **self._watch.results(results), "open_loop": open_loop, "pictures": self._sent},
            )

    def _forget_pending(self) -> None:
        for greenlet in self._pending:
            greenlet.kill(block=False)
        self._pending.clear()

    def _show_progress(self) -> None:
        gevent.sleep(PROGRESS_EVERY_S)
        before_s, before = 0.0, 0
        while self._recorder.recording:
            elapsed_s, items, failures = self._recorder.progress()
            rate = (items - before) / (elapsed_s - before_s)
            self._say(f"{elapsed_s:4.0f} s measured: {rate:8.1f} items/s, {failures} failures")
            before_s, before = elapsed_s, items
            gevent.sleep(PROGRESS_EVERY_S)

    def _say(self, line: str) -> None:
        if self._options.progress:
            print(f"  {line}", file=sys.stderr, flush=True)
