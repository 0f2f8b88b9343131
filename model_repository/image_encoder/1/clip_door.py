"""The door of a tower: decides when a request comes whether it can be served in time, and has it wait for its turn.

What cannot be served in time is refused at once, what waits too long without being computed, and both hear when to
come back. The rest is done by worker threads, fairly between callers, and each request is answered when it is done.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Sequence

from clip_admission import COUNTS, Admission
from clip_board import Board
from clip_fair import Entry, Limits, OverloadError

# Long enough for another server to be asked instead, or this one to be started again.
_RETRY_S = 2.0

__all__ = ["COUNTS", "Board", "Door", "Limits", "OverloadError", "Ticket"]


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
        self._board = board
        self._changed = threading.Condition()
        self._admission: Admission[Ticket] = Admission(workers, board, limits or Limits(), behind or (lambda: 0.0))
        self._closed = False
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(workers)]
        for thread in self._threads:
            thread.start()

    def refusal(self, cost: float, caller: str = "", timeout_s: float = 0.0) -> OverloadError | None:
        """Why a request of that cost would be refused now, which is then counted as refused; None: it would not.

        For before its input is looked at, with the least that it may cost.
        """
        if self._board.is_draining:
            return _ending()
        with self._changed:
            return self._admission.refusal(cost, caller, timeout_s)

    def submit(self, ticket: Ticket, *, here: bool = False, begun: bool = False) -> None:
        """Take a request in, or answer it with `OverloadError`.

        Args:
            here: do it in this thread if it is one piece and nobody waits.
            begun: other models have worked for it, so that a server that ends takes it in, too.
        """
        if self._board.is_draining and not begun:
            ticket.end(_ending())
            return
        with self._changed:
            at_once = here and self._admission.take_at_once(ticket)
            out = [] if at_once else self._note_over(self._admission.enter(ticket))
            if ticket.waits:
                # A request of several pieces is work for several.
                self._changed.notify(len(ticket.costs))
        _turn_away(out)
        if at_once:
            self._do(ticket, 0)

    def counts(self) -> dict[str, float]:
        """What was turned away so far, by the names in COUNTS."""
        with self._changed:
            return dict(self._admission.counts)

    def close(self) -> None:
        """Do what waits, then end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _note_over(self, out: list[tuple[Ticket, OverloadError]]) -> list[tuple[Ticket, OverloadError]]:
        """Pieces of theirs that still run must not answer them again."""
        for ticket, _ in out:
            ticket.is_over = True
        return out

    def _run(self) -> None:
        while self._serve():
            pass

    def _serve(self) -> bool:
        """Do a piece; False when closed. A frame of its own, so that an idle worker holds no request."""
        with self._changed:
            while not len(self._admission.queue):
                if self._closed:
                    return False
                self._changed.wait()
            late = self._note_over(self._admission.overdue())
            taken = self._admission.take() if len(self._admission.queue) else None
        _turn_away(late)
        if taken is not None:
            self._do(*taken)
        return True

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
            self._admission.give_back(1, cost, seconds)
            ticket.undone -= 1
            is_last = not ticket.is_over and (failed or not ticket.undone)
            if is_last:
                ticket.is_over = True
                self._admission.queue.remove([ticket])
            return is_last


def _ending() -> OverloadError:
    return OverloadError("this server is ending", _RETRY_S)


def _turn_away(turned_away: list[tuple[Ticket, OverloadError]]) -> None:
    for ticket, why in turned_away:
        ticket.end(why)
