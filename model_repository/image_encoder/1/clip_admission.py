"""What may wait inside a model: refuses what comes and cannot be served in time, and drops what waited too long."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Generic

from clip_board import Board
from clip_fair import E, FairQueue, Limits, OverloadError, Pace

# By the name of a counter of `Admission.counts`, what it counts.
COUNTS = {
    "tritonclip_admission_refused_total": "Requests that were refused on arrival, as they could not be served in time",
    "tritonclip_admission_expired_total": "Requests that waited too long and were refused without being computed",
}
REFUSED, EXPIRED = COUNTS


class Admission(Generic[E]):
    """A fair queue, how fast it is served, and what that says of those who come. Not safe between threads.

    Args:
        workers: how many pieces are done at a time.
        board: of this process; is told the backlog.
        limits: what bounds the queue.
        behind: seconds of work that wait where the requests go from here.

    Attributes:
        queue: what waits.
        running: cost of the pieces that were taken and not given back.
        counts: what was turned away so far, by the names in COUNTS.
    """

    def __init__(self, workers: int, board: Board, limits: Limits, behind: Callable[[], float] = lambda: 0.0) -> None:
        self.queue: FairQueue[E] = FairQueue(limits)
        self.running = 0.0
        self.counts = dict.fromkeys(COUNTS, 0)
        self._busy = 0  # pieces
        self._workers, self._board, self._behind = workers, board, behind
        self._pace = Pace()

    def refusal(self, cost: float, caller: str, timeout_s: float) -> OverloadError | None:
        """Why a request of that cost is refused, which is then counted; None: it may come in."""
        unit_s = self._pace.seconds / self._workers
        refusal = self.queue.refusal(caller, cost, timeout_s, unit_s, self.running, self._behind())
        self.counts[REFUSED] += refusal is not None
        return refusal

    def enter(self, entry: E) -> list[tuple[E, OverloadError]]:
        """Have it wait, if it may; returns who is turned away and has to be told, it or others."""
        out = self.overdue()
        refusal = self.refusal(entry.left, entry.caller, entry.timeout_s)
        if refusal is not None:
            return [*out, (entry, refusal)]
        crowded = self.queue.crowded_out(entry)
        full = OverloadError(f"{len(self.queue)} requests of {self.queue.size} bytes wait", self.backlog_s / 2)
        turned_away = [entry] if crowded is None else crowded
        self.counts[REFUSED] += len(turned_away)
        if crowded is not None:
            self.queue.push(entry)
            self._tell()
        return [*out, *((other, full) for other in turned_away)]

    def take_at_once(self, entry: E) -> bool:
        """Take an entry of one piece if nothing waits, here or downstream; returns whether it was taken."""
        if len(entry.costs) > 1 or not self.is_idle or self._behind():
            return False
        entry.taken = 1
        self._busy = 1
        self.running = entry.left
        return True

    def overdue(self) -> list[tuple[E, OverloadError]]:
        """Who waited too long, is in the queue no more, and has to be told."""
        late = self.queue.overdue(time.monotonic())
        if not late:
            return []
        self.counts[EXPIRED] += len(late)
        why = OverloadError("the request waited its share of the timeout", self.backlog_s / 2)
        return [(entry, why) for entry in late]

    def take(self) -> tuple[E, int]:
        """The next piece: its entry, and its index there."""
        entry, piece = self.queue.take()
        self._busy += 1
        self.running += entry.costs[piece]
        self._tell()
        return entry, piece

    def give_back(self, pieces: int, cost: float, seconds: float | None) -> None:
        """Pieces that were taken are done; `seconds` for all of them by one worker, None: that says nothing."""
        if seconds is not None:
            self._pace.note(seconds, cost)
        self._busy -= pieces
        self.running = self.running - cost if self._busy else 0.0
        self._tell()

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not len(self.queue) and not self._busy

    @property
    def backlog_s(self) -> float:
        """Seconds until what waits is done."""
        return (self.queue.waiting + self.running / 2) * self._pace.seconds / self._workers

    def _tell(self) -> None:
        self._board.set_backlog(self.backlog_s)
