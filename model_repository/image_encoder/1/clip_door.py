"""The door of a tower: decides when a request comes whether it can be served in time, and has it wait for its turn.

What cannot be served in time is refused at once, what waits too long without being computed, and both hear when to
come back. The rest is done by worker threads, fairly between callers, and each request is answered when it is done.
"""

from __future__ import annotations

import json
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from clip_board import Board
from clip_fair import Entry, FairQueue, Limits, OverloadError, Pace

# The gRPC header, and the request's parameter that Triton makes of it, that says who shares with whom.
CALLER = "tritonclip-caller"
# By the name of a counter of `Door.counts`, what it counts.
COUNTS = {
    "tritonclip_door_refused": "Requests that were refused when they came, because they could not be served in time",
    "tritonclip_door_expired": "Requests that waited too long and were refused without being computed",
}


class Ticket(Entry):
    """A request of one or more pieces.

    Args:
        costs: of its pieces, in any unit proportional to the time that they take.
        work: does a piece, by its index; called from several threads at a time. What it raises is the answer.
        answer: called once, from any thread: with None when all pieces are done, else with why they are not.
        caller, timeout_s, size, came: see `Entry`.
    """

    def __init__(
        self,
        costs: Sequence[float],
        work: Callable[[int], None],
        answer: Callable[[Exception | None], None],
        *,
        caller: str = "",
        timeout_s: float = 0.0,
        size: int = 0,
        came: float | None = None,
    ) -> None:
        super().__init__(costs, caller=caller, timeout_s=timeout_s, size=size, came=came)
        self.work, self._answer = work, answer
        self.undone = len(costs)
        self.is_over = False

    def end(self, error: Exception | None = None) -> None:
        """Answer it."""
        try:
            self._answer(error)
        except Exception:  # an answer that cannot be sent must not cost the others theirs
            traceback.print_exc()


class Door:
    """Takes requests in, and does them.

    Args:
        workers: threads, which do one piece each at a time.
        board: of this process.
        limits: what bounds the requests that wait.
        behind: seconds of work that wait where the requests go from here.
    """

    def __init__(
        self, workers: int, board: Board, limits: Limits | None = None, behind: Callable[[], float] | None = None
    ) -> None:
        self._board, self._workers = board, workers
        self._behind = behind or (lambda: 0.0)
        self._changed = threading.Condition()
        self._queue: FairQueue[Ticket] = FairQueue(limits or Limits())
        self._pace = Pace()
        self._running = 0.0  # cost
        self._busy = 0  # pieces that run
        self._counts = dict.fromkeys(COUNTS, 0)
        self._closed = False
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(workers)]
        for thread in self._threads:
            thread.start()

    def refusal(self, cost: float, caller: str = "", timeout_s: float = 0.0) -> OverloadError | None:
        """Why a request of that cost would be refused now, which is then counted as refused; None: it would not.

        For before its input is looked at, with the least that it may cost.
        """
        with self._changed:
            return self._refusal(cost, caller, timeout_s)

    def submit(self, ticket: Ticket, *, here: bool = False) -> None:
        """Take a request in, or answer it with `OverloadError`; `here`: do it in this thread where nobody waits."""
        with self._changed:
            out = self._take_in(ticket)
            now = here and ticket.waits and len(self._queue) == 1 and not self._busy
            taken = self._take() if now else None
            if ticket.waits:
                self._changed.notify()
        _refuse(out)
        if taken is not None:
            self._do(*taken)

    def counts(self) -> dict[str, float]:
        """What was turned away so far, by the names in COUNTS."""
        with self._changed:
            return dict(self._counts)

    def close(self) -> None:
        """Do what waits, then end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _take_in(self, ticket: Ticket) -> list[tuple[Ticket, OverloadError]]:
        """Queue it if it may wait; returns whom to refuse."""
        out = self._overdue()
        refusal = self._refusal(ticket.left, ticket.caller, ticket.timeout_s)
        if refusal is not None:
            return [*out, (ticket, refusal)]
        crowded = self._queue.crowded_out(ticket)
        full = OverloadError(f"{len(self._queue)} requests of {self._queue.size} bytes wait", self._backlog_s() / 2)
        if crowded is None:
            self._counts["tritonclip_door_refused"] += 1
            return [*out, (ticket, full)]
        self._counts["tritonclip_door_refused"] += len(crowded)
        self._queue.push(ticket)
        self._tell()
        return [*out, *((other, full) for other in crowded)]

    def _refusal(self, cost: float, caller: str, timeout_s: float) -> OverloadError | None:
        refusal = self._queue.refusal(caller, cost, timeout_s, self._unit_s(), self._running, self._behind())
        self._counts["tritonclip_door_refused"] += refusal is not None
        return refusal

    def _overdue(self) -> list[tuple[Ticket, OverloadError]]:
        late = self._queue.overdue(time.monotonic())
        if not late:
            return []
        self._counts["tritonclip_door_expired"] += len(late)
        for ticket in late:
            ticket.is_over = True
        why = OverloadError("the request waited its share of the timeout", self._backlog_s() / 2)
        return [(ticket, why) for ticket in late]

    def _run(self) -> None:
        while self._serve():
            pass

    def _serve(self) -> bool:
        """Do a piece; False when closed. A frame of its own, so that an idle worker holds no request."""
        with self._changed:
            while not len(self._queue):
                if self._closed:
                    return False
                self._changed.wait()
            late = self._overdue()
            taken = self._take() if len(self._queue) else None
        _refuse(late)
        if taken is not None:
            self._do(*taken)
        return True

    def _take(self) -> tuple[Ticket, int]:
        ticket, piece = self._queue.take()
        self._busy += 1
        self._running += ticket.costs[piece]
        self._tell()
        return ticket, piece

    def _do(self, ticket: Ticket, piece: int) -> None:
        number, begun, error = self._board.begin(), time.monotonic(), None
        try:
            ticket.work(piece)
        except Exception as raised:
            error = raised
        finally:
            self._board.end(number)
        if self._done(ticket, ticket.costs[piece], time.monotonic() - begun, failed=error is not None):
            ticket.end(error)

    def _done(self, ticket: Ticket, cost: float, seconds: float, *, failed: bool) -> bool:
        """Count a piece that was done; whether its request is to be answered."""
        with self._changed:
            self._pace.note(seconds, cost)
            self._busy -= 1
            self._running = self._running - cost if self._busy else 0.0
            ticket.undone -= 1
            is_last = not ticket.is_over and (failed or not ticket.undone)
            if is_last:
                ticket.is_over = True
                self._queue.remove([ticket])
            self._tell()
            return is_last

    def _unit_s(self) -> float:
        return self._pace.seconds / self._workers

    def _backlog_s(self) -> float:
        return (self._queue.waiting + self._running / 2) * self._unit_s()

    def _tell(self) -> None:
        self._board.set_backlog(self._backlog_s())


def asked_by(request: Any) -> tuple[str, float]:
    """Who sent a request of Triton's, "" where nothing says so, and its timeout in seconds, 0 for none."""
    parameters = request.parameters()
    caller = str(json.loads(parameters).get(CALLER, "")) if CALLER in parameters else ""
    return caller, request.timeout() / 1e6


def _refuse(turned_away: list[tuple[Ticket, OverloadError]]) -> None:
    for ticket, why in turned_away:
        ticket.end(why)
