"""Brings models back whose processes died, in a thread of its own: the watching goes on meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from tritonclip_serve.supervision.control import LoadError, ModelControl, StuckError
from tritonclip_serve.supervision.events import Cause, Events
from tritonclip_serve.supervision.policies import Backoff
from tritonclip_serve.supervision.watcher import Death

# From one death to the next, the loading between them included: what lives longer is not dying of being loaded.
_CALM_S = 1.0
# The longest pause before a model that loaded and died again is loaded; one that fails to load waits longer each time.
_MOST_PAUSE_S = 0.5


@dataclass
class _Fallen:
    """A model that is not back yet.

    Attributes:
        due: when it is tried next.
        failures: the pauses after attempts that failed.
    """

    name: str
    cause: Cause
    since: float
    due: float
    failures: Backoff = field(default_factory=Backoff)
    instances: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class _Outcome:
    """What a revival came to.

    Attributes:
        failed: why, by model, for those that are not back.
        note: what became of the callers whose calls were lost.
    """

    failed: dict[str, str]
    note: str = ""


class Revival:
    """The models of one run of a server that are down.

    Args:
        control: loads them.
        events: is told.
        cut: ends the connections of callers, so that they repeat calls that were lost; returns how many, or raises
            OSError where that is not allowed.
        retire: forgets the processes that models have now, since those end when the models are unloaded.

    Attributes:
        stuck: why only a new server helps, once that is so.
        lost_calls: whether processes ended, and with them calls that Triton goes on counting.
    """

    def __init__(
        self,
        control: ModelControl,
        events: Events,
        cut: Callable[[], int],
        retire: Callable[[Collection[str]], None],
    ) -> None:
        self.stuck: Cause | None = None
        self.lost_calls = False
        self._control = control
        self._events = events
        self._cut = cut
        self._retire = retire
        self._fallen: dict[str, _Fallen] = {}
        self._backoffs: dict[str, Backoff] = {}
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="revival")
        self._batch: list[_Fallen] = []
        self._running: Future[_Outcome] | None = None
        self._came_back = False
        self._late: list[Death] = []

    def models(self) -> Collection[str]:
        """The names of the models that are down."""
        return tuple(self._fallen)

    def is_back(self) -> bool:
        """Whether a model came back since the last call: it has new processes."""
        came_back, self._came_back = self._came_back, False
        return came_back

    def close(self) -> None:
        """Try no more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def add(self, deaths: Collection[Death]) -> None:
        """Note processes that have ended."""
        # Whatever a board says: Triton holds calls for a process that has not seen them.
        self.lost_calls |= bool(deaths)
        for death in deaths:
            model = death.stub.model
            fallen = self._fallen.get(model)
            # A new process that ended while its model was being loaded: the end of the loading tells what that means.
            if fallen is not None and fallen in self._batch:
                self._late.append(death)
                continue
            if fallen is None:
                pause = min(_MOST_PAUSE_S, self._backoffs.setdefault(model, Backoff(_CALM_S)).pause(death.seen_at))
                fallen = _Fallen(model, death.cause, death.seen_at, death.seen_at + pause)
                self._fallen[model] = fallen
            if death.stub.pid:
                fallen.instances.add(f"{death.stub.instance} (process {death.stub.pid})")

    def step(self, now: float) -> None:
        """Finish what is done, and begin what is due."""
        if self._running is not None and self._running.done():
            self._finish(self._running, time.monotonic())
            late, self._late = self._late, []
            self._running, self._batch = None, []
            self.add([death for death in late if death.stub.model not in self._fallen])
        due = [fallen for fallen in self._fallen.values() if fallen.due <= now]
        if self._running is None and due and self.stuck is None:
            self._batch = due
            self._retire([fallen.name for fallen in due])
            self._running = self._pool.submit(self._revive, [fallen.name for fallen in due])

    def _revive(self, models: list[str]) -> _Outcome:
        failed = self._control.reload(models)
        # At once: whoever waits for a lost call has waited long enough.
        note = self._release_callers() if len(failed) < len(models) else ""
        if failed or self._others_are_down(models):
            return _Outcome(failed, note)
        try:
            self._control.prove()
        except LoadError as error:
            # The next to fall may be why.
            if not self._others_are_down(models):
                return _Outcome(dict.fromkeys(models, str(error)), note)
        return _Outcome({}, note)

    def _others_are_down(self, models: list[str]) -> bool:
        return bool(self._late or set(self._fallen) - set(models))

    def _finish(self, done: Future[_Outcome], now: float) -> None:
        try:
            outcome = done.result()
        except StuckError as error:
            models = "; ".join(f"model {one.name}: {one.cause.phrase}" for one in self._batch)
            self.stuck = Cause("stuck", f"{models}; {error}")
            return
        except Exception as error:  # whatever it is, the watching has to go on
            outcome = _Outcome({fallen.name: repr(error) for fallen in self._batch})
        for fallen in self._batch:
            if fallen.name in outcome.failed:
                pause = fallen.failures.pause(now)
                fallen.due = now + pause
                self._events.failed("model", fallen.name, fallen.cause, outcome.failed[fallen.name], pause)
            else:
                del self._fallen[fallen.name]
                self._came_back = True
                places = f" in {', '.join(sorted(fallen.instances))}" if fallen.instances else ""
                cause = Cause(fallen.cause.kind, f"{fallen.cause.phrase}{places}")
                self._events.restarted("model", fallen.name, cause, now - fallen.since, f"loaded again{outcome.note}")

    def _release_callers(self) -> str:
        try:
            count = self._cut()
        except OSError as error:
            return f", calls that it had taken wait for their deadlines (connections cannot be ended: {error.strerror})"
        return f", {count} connection{'s' * (count != 1)} ended because calls on them may be lost"
