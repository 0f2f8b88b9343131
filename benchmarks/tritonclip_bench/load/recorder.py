"""Collects what a load test measures: every request inside the window, and the load's own CPU use."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from tritonclip_bench.load.cpu import CpuUse
from tritonclip_bench.load.samples import ANSWERED, UNANSWERED, Columns, Outcome, Samples
from tritonclip_bench.load.timeline import timeline

# Different reasons of failure that are kept apart; what comes later is one.
MOST_REASONS = 1000
OTHER_REASONS = "other reasons"
# gRPC names the peer in its messages, and a result names no address.
_PEER = re.compile(r"\bipv[46]:\S+:\d+|\b(?:\d{1,3}\.){3}\d{1,3}:\d+|\[[0-9a-f:]+\]:\d+")


class Recorder:
    """Records between `begin` and `end`; what comes before or after is warm-up or shutdown.

    A request belongs to the window in which its answer arrives.

    Attributes:
        cpu: of the load generator.
        open_s: how long the window was open, with what was cut off at its end.
    """

    def __init__(self) -> None:
        self.cpu = CpuUse()
        self.open_s = 0.0
        self._columns: dict[str, Columns] = defaultdict(Columns)
        self._outcomes: list[Outcome] = [ANSWERED, UNANSWERED]
        self._codes = {outcome: code for code, outcome in enumerate(self._outcomes)}
        self._begun_s: float | None = None
        self._window_s: float | None = None
        self._until_s: float | None = None
        self._items = self._failures = 0
        # Rows of each model that were reported already, and the windows of other processes.
        self._reported: dict[str, int] = {}
        self._windows: dict[str, float] = {}

    @property
    def recording(self) -> bool:
        """Whether the window is open."""
        return self._begun_s is not None and self._window_s is None

    def begin(self) -> None:
        """Open the window; what an earlier one holds is forgotten."""
        for kept in (self._columns, self._reported, self._windows):
            kept.clear()
        self._items = self._failures = 0
        self._window_s = self._until_s = None
        self.cpu.begin()
        self._begun_s = time.perf_counter()

    def add(
        self,
        model: str,
        latency_ms: float,
        items: int,
        failure: BaseException | None,
        *,
        gave_up: bool = False,
        due_s: float | None = None,
    ) -> None:
        """Take one request, if the window is open.

        Args:
            gave_up: of an open loop, the failure is that no answer came in time, so that `latency_ms` is an age.
            due_s: when it was due, of `time.perf_counter`; default: its time ends now.
        """
        if self._begun_s is None or self._window_s is not None:
            return
        if due_s is None:
            due_s = time.perf_counter() - latency_ms / 1000
        if failure is None:
            self._items += items
            self._columns[model].append(due_s, latency_ms, items, 0)
        else:
            self._failures += 1
            code = self._code(Outcome(_PEER.sub("the server", str(failure)), True, gave_up))
            self._columns[model].append(due_s, latency_ms, items, code)

    def _code(self, outcome: Outcome) -> int:
        if outcome not in self._codes:
            if len(self._codes) >= MOST_REASONS and outcome.text != OTHER_REASONS:
                return self._code(outcome._replace(text=OTHER_REASONS))
            self._codes[outcome] = len(self._outcomes)
            self._outcomes.append(outcome)
        return self._codes[outcome]

    def progress(self) -> tuple[float, int, int]:
        """Seconds since `begin`, items and failures so far."""
        return self.second(), self._items, self._failures

    def second(self) -> float:
        """The window's second that it is now; 0 before there is a window."""
        return 0.0 if self._begun_s is None else time.perf_counter() - self._begun_s

    @property
    def begun_s(self) -> float:
        """When the window began, of `time.perf_counter`; 0 before there is one."""
        return self._begun_s or 0.0

    @property
    def window_s(self) -> float:
        """How long the window was open; 0 while it is."""
        return self._window_s or 0.0

    def end(self, waiting: Iterable[tuple[str, float]] = (), until_s: float | None = None) -> None:
        """Close the window; nothing happens when it is not open.

        Args:
            waiting: of an open loop, model and age in milliseconds of the requests without answer.
            until_s: the window's second from which on nothing counts; default: now.
        """
        if not self.recording:
            return
        end_s = time.perf_counter()
        self.cpu.end()
        for model, age_ms in waiting:
            self._columns[model].append(end_s - age_ms / 1000, age_ms, 0, self._codes[UNANSWERED])
        self.open_s = max(self._windows.values(), default=end_s - self.begun_s)
        self._until_s = until_s
        self._window_s = self.open_s if until_s is None else min(self.open_s, until_s)

    def samples(self) -> dict[str, Samples]:
        """The requests of each entry point, by its name; where the window was cut, those that ended before."""
        outcomes = list(self._outcomes)
        found = {name: Samples.of(columns, outcomes, self.begun_s) for name, columns in sorted(self._columns.items())}
        if self._until_s is None:
            return found
        return {name: samples.where(samples.end_s < self._until_s) for name, samples in found.items()}

    def results(self) -> dict[str, object] | None:
        """The measured window, for JSON; None when there was none."""
        if not self.window_s:
            return None
        by_model = self.samples()
        total = Samples.together(by_model.values(), self._outcomes)
        return {
            "window_s": self.window_s,
            "total": total.summary(self.window_s),
            "by_model": {name: samples.summary(self.window_s) for name, samples in by_model.items()},
            "timeline": timeline(total, self.window_s),
            **self.cpu.summary(),
        }

    def report(self) -> dict[str, Any]:
        """What was recorded since the last report, for the process that collects it with `absorb`."""
        columns = {}
        for model, kept in self._columns.items():
            begin = self._reported.get(model, 0)
            columns[model] = kept.to_bytes(begin, self.begun_s)
            self._reported[model] = len(kept.due_s)
        outcomes = [list(outcome) for outcome in self._outcomes]
        second = self.window_s or self.second()
        return {"columns": columns, "outcomes": outcomes, "second": second, "cores": self.cpu.cores()}

    def absorb(self, name: str, report: Mapping[str, Any]) -> None:
        """Add another process's report to the open window; `name` tells the processes apart."""
        if not self.recording:
            return
        codes = [self._code(Outcome(*outcome)) for outcome in report["outcomes"]]
        for model, columns in report["columns"].items():
            kept = self._columns[model]
            begin = len(kept.due_s)
            kept.extend(columns, codes, self.begun_s)
            new = Samples.of(Columns(*(column[begin:] for column in kept.all())), self._outcomes, self.begun_s)
            self._items += int(new.items[new.are("answered")].sum())
            self._failures += int(new.are("failed").sum())
        self._windows[name] = report["second"]
        self.cpu.others[name] = report["cores"]
