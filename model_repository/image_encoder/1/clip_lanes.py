"""Continuous batching: as soon as a core is free it takes the rows that wait, whoever sent them."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from clip_admission import Admission
from clip_board import Board
from clip_fair import Limits, OverloadError
from clip_jobs import Job, Piece, Run, count_rows, run_pieces

# How much of the time that a full slice takes a free lane waits for the next row to fill it. The senders of the rows
# that were just answered are preparing the next ones, and use this core for it.
PATIENCE = 1 / 3
# Weight of the newest observation in a running average.
NEWEST = 1 / 8


@dataclass
class Sums:
    """What was done so far.

    Attributes:
        requests: answered ones, failed ones too.
        items, batches: rows that ran, and the slices that they ran in.
        queue_s, compute_s: of the answered requests, seconds before and after their first row was taken.
    """

    requests: int = 0
    items: int = 0
    batches: int = 0
    queue_s: float = 0.0
    compute_s: float = 0.0


TurnedAway = list[tuple[Job, OverloadError]]


class Lanes:
    """Runs rows in slices, one lane a core, fairly between callers.

    A free lane takes its share of the pending and running requests, at most `most` rows: when other lanes work it waits
    up to `PATIENCE` for that many, because small slices cost more per row. When nothing else runs, whatever waits is
    spread over all lanes at once, and fewer rows than lanes run on all cores together. So a lone request never waits.
    What cannot be answered in time is refused when it comes, and what waited too long is not run.

    Args:
        narrow: runs a batch on one core; called from several threads at a time.
        wide: runs a batch on all cores, while nothing else runs.
        count: the number of lanes.
        most: rows of a slice.
        limits: what bounds the requests that wait.
        board: of this process.
    """

    def __init__(
        self, narrow: Run, wide: Run, count: int, most: int, limits: Limits | None = None, board: Board | None = None
    ) -> None:
        self._narrow, self._wide, self._count, self._most = narrow, wide, count, most
        self._changed = threading.Condition()
        self._board = board or Board("lanes", "none")
        self._admission: Admission[Job] = Admission(count, self._board, limits or Limits())
        self._jobs = self._admission.queue
        self._urgent = 0  # rows that found all lanes free
        self._running = 0  # rows
        self._busy = 0  # lanes
        self._all_taken = False
        self._closed = False
        self._arrived = 0.0  # when the newest row came
        self._present = 1.0  # the most rows that were waiting or running lately
        self._row_s: float | None = None  # seconds a row of a slice, a running average
        self._sums = Sums()
        self._unanswered: set[Job] = set()  # of those that were begun
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job) -> None:
        """Queue `job`, or answer it with `OverloadError`; never blocks."""
        with self._changed:
            out = self._admission.enter(job)
            if job.waits:
                self._arrived = time.monotonic()
                present = self._jobs.pieces + self._running
                self._present = max(present, _follow(self._present, present))
                self._changed.notify_all()
        self._turn_away(out)

    def sums(self) -> Sums:
        """What was done so far."""
        with self._changed:
            return replace(self._sums)

    def turned_away(self) -> dict[str, int]:
        """What was not done so far, by the names in `clip_admission.COUNTS`."""
        with self._changed:
            return dict(self._admission.counts)

    def close(self) -> None:
        """Run what waits, then end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while self._serve():
            pass

    def _serve(self) -> bool:
        """Take and run once; False when closed. A frame of its own, so that an idle lane holds no request."""
        taken = self._take()
        if taken is None:
            return False
        pieces, run, late = taken
        self._turn_away(late)
        if not pieces:
            return True
        begun = time.monotonic()
        try:
            run_pieces(pieces, partial(self._compute, run))
        finally:
            self._give_back(pieces, time.monotonic() - begun)
        return True

    def _compute(self, run: Run, rows: np.ndarray) -> np.ndarray:
        """Run a batch. Only this counts as work on the board: an answer may wait for a busy server to take it."""
        number = self._board.begin()
        try:
            return run(rows)
        finally:
            self._board.end(number)

    def _take(self) -> tuple[list[Piece], Run, TurnedAway] | None:
        """Wait for rows and take them, or what waited too long; None when closed."""
        with self._changed:
            while not (late := self._admission.overdue()) and not (share := self._share()):
                if self._closed and not self._jobs.pieces:
                    return None
                self._changed.wait(self._patience())
            if late:
                return [], self._narrow, late
            alone = not self._busy and self._jobs.pieces < self._count
            self._all_taken = alone
            pieces = self._pop(self._jobs.pieces if alone else share)
            self._busy += 1
            self._changed.notify_all()
        return pieces, self._wide if alone else self._narrow, late

    def _share(self) -> int:
        """How many rows a free lane takes now; 0: wait."""
        if not self._jobs.pieces or self._all_taken:
            return 0
        if not self._busy:
            self._urgent = self._jobs.pieces
        free = self._count - self._busy
        if self._urgent:
            return min(self._most, self._jobs.pieces, _divide_up(self._urgent, free))
        if self._jobs.pieces < self._enough() and not self._closed and time.monotonic() < self._deadline():
            return 0
        return min(self._most, self._jobs.pieces, max(self._enough(), _divide_up(self._jobs.pieces, free)))

    def _enough(self) -> int:
        """A lane's share of the rows that are usually pending or running."""
        return max(1, min(self._most, _divide_up(round(self._present), self._count)))

    def _deadline(self) -> float:
        return self._arrived + PATIENCE * self._enough() * (self._row_s or 0.0)

    def _patience(self) -> float | None:
        """Seconds to the moment when rows that wait are taken anyway; None: until something changes."""
        if not self._jobs.pieces or self._all_taken:
            return None
        return max(0.0, self._deadline() - time.monotonic())

    def _pop(self, count: int) -> list[Piece]:
        """Up to `count` rows of those whose turn it is, all of one shape."""
        taken: dict[Job, slice] = {}
        shape = self._jobs.first().rows.shape[1:]
        now = time.monotonic()
        while count and len(self._jobs) and self._jobs.first().rows.shape[1:] == shape:
            job, row = self._admission.take()
            if not row:
                job.begun = now
                self._unanswered.add(job)
            taken[job] = slice(taken[job].start if job in taken else row, row + 1)
            count -= 1
        pieces = [Piece(job, rows) for job, rows in taken.items()]
        popped = count_rows(pieces)
        self._running += popped
        self._urgent = max(0, self._urgent - popped)
        return pieces

    def _give_back(self, pieces: list[Piece], seconds: float) -> None:
        rows, cost = count_rows(pieces), sum(sum(piece.job.costs[piece.rows]) for piece in pieces)
        with self._changed:
            if not self._all_taken:
                self._row_s = _follow(self._row_s, seconds / rows)
            self._admission.give_back(rows, cost, None if self._all_taken else seconds)
            self._busy -= 1
            self._running -= rows
            # Of what failed, nobody wants the rest.
            self._jobs.remove([piece.job for piece in pieces if piece.job.ended and piece.job.waits])
            self._all_taken = False
            self._count_up(pieces, rows)
            self._changed.notify_all()

    def _turn_away(self, out: TurnedAway) -> None:
        for job, why in out:
            job.fail(why)
        if out:
            with self._changed:
                self._unanswered.difference_update(job for job, _ in out)

    def _count_up(self, pieces: list[Piece], rows: int) -> None:
        self._sums.items += rows
        self._sums.batches += 1
        answered = {piece.job for piece in pieces if piece.job.ended} & self._unanswered
        self._unanswered -= answered
        self._sums.requests += len(answered)
        self._sums.queue_s += sum(job.begun - job.came for job in answered)
        self._sums.compute_s += sum(job.ended - job.begun for job in answered)


def _follow(average: float | None, newest: float) -> float:
    return newest if average is None else average + NEWEST * (newest - average)


def _divide_up(count: int, by: int) -> int:
    return -(-count // by)
