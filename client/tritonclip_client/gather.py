"""Running flows side by side from one thread, for the blocking client."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from queue import Queue
from typing import Any, Protocol, TypeAlias

from .steps import CallFlow, Pause, Rpc

Report: TypeAlias = Callable[[Any, Exception | None], None]


class Running(Protocol):
    """A step on its way: a call, or the timer of a pause."""

    def cancel(self) -> Any: ...


class Gathering:
    """Runs flows, at most `width` at a time, and keeps their order.

    The caller's thread does everything: gRPC's own thread only reports what came back, so that any
    number of requests in flight needs no thread of ours.

    Args:
        begin: starts a step and returns at once; it calls `report(answer, error)` once, from anywhere.
    """

    def __init__(self, begin: Callable[[Rpc | Pause, Report], Running], width: int) -> None:
        self._begin = begin
        self._width = width
        self._reports: Queue[tuple[int, Any, Exception | None]] = Queue()
        self._running: dict[int, tuple[CallFlow[Any], Running]] = {}
        self._results: dict[int, Any] = {}

    def run(self, flows: Iterable[CallFlow[Any]]) -> list[Any]:
        """The flows' results, in order; the first error cancels what is in flight and is raised."""
        try:
            for index, flow in enumerate(flows):
                self._advance(index, flow, partial(next, flow))
                while len(self._running) >= self._width:
                    self._take_report()
            while self._running:
                self._take_report()
        finally:
            for flow, running in self._running.values():
                running.cancel()
                flow.close()
        return [self._results[index] for index in range(len(self._results))]

    def _take_report(self) -> None:
        index, answer, error = self._reports.get()
        flow, _ = self._running.pop(index)
        self._advance(index, flow, partial(flow.throw, error) if error else partial(flow.send, answer))

    def _advance(self, index: int, flow: CallFlow[Any], resume: Callable[[], Rpc | Pause]) -> None:
        try:
            step = resume()
        except StopIteration as stop:
            self._results[index] = stop.value
            return
        self._running[index] = flow, self._begin(step, partial(self._report, index))

    def _report(self, index: int, answer: Any, error: Exception | None) -> None:
        self._reports.put((index, answer, error))
