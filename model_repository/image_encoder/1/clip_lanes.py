"""Continuous batching: as soon as a core is free it takes the rows that wait, whoever sent them."""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

Run = Callable[[np.ndarray], np.ndarray]
Answer = Callable[["np.ndarray | Exception"], None]

# How much of the time that a full slice takes a free lane waits for the next row to fill it. The senders of the rows
# that were just answered are preparing the next ones, and use this core for it.
PATIENCE = 1 / 3
# Weight of the newest observation in a running average.
NEWEST = 1 / 8


class Job:
    """One request: its rows [N, ...], and whom to tell the result.

    Args:
        rows: what to run.
        answer: called once, from any thread, with the outputs [N, ...] or with what the graph raised.
        came: when the request came, of `time.monotonic`; default: now.

    Attributes:
        begun, ended: when its first row was taken, and when it was answered; 0 before.
    """

    def __init__(self, rows: np.ndarray, answer: Answer, came: float | None = None) -> None:
        self.rows = rows
        self.taken = 0
        self.came = time.monotonic() if came is None else came
        self.begun = self.ended = 0.0
        self._answer = answer
        self._outputs: np.ndarray | None = None
        self._left = len(rows)
        self._lock = threading.Lock()

    def finish(self, piece: slice, outputs: np.ndarray | Exception) -> None:
        """Note the outputs of some rows; the last ones, or the first failure, answer the request."""
        with self._lock:
            if self._left <= 0:
                return
            if isinstance(outputs, Exception):
                self._left, result = 0, outputs
            else:
                if self._outputs is None:
                    self._outputs = np.empty((len(self.rows), *outputs.shape[1:]), outputs.dtype)
                self._outputs[piece] = outputs
                self._left -= len(outputs)
                result = self._outputs
            if self._left:
                return
        try:
            self._answer(result)
        except Exception:  # an answer that cannot be sent must not cost the others theirs
            traceback.print_exc()
        self.ended = time.monotonic()


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of one request."""

    job: Job
    rows: slice

    def array(self) -> np.ndarray:
        """The rows themselves."""
        array: np.ndarray = self.job.rows[self.rows]
        return array


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


class Lanes:
    """Runs rows in slices, one lane a core, first come, first served.

    A free lane takes its share of the requests in the house, at most `most` rows: when other lanes work it waits up
    to `PATIENCE` for that many, because small slices cost more per row. When nothing else runs, whatever waits is
    spread over all lanes at once, and fewer rows than lanes run on all cores together. So a lone request never waits.

    Args:
        narrow: runs a batch on one core; called from several threads at a time.
        wide: runs a batch on all cores, while nothing else runs.
        count: the number of lanes.
        most: rows of a slice.
    """

    def __init__(self, narrow: Run, wide: Run, count: int, most: int) -> None:
        self._narrow, self._wide, self._count, self._most = narrow, wide, count, most
        self._changed = threading.Condition()
        self._jobs: deque[Job] = deque()
        self._waiting = 0  # rows
        self._urgent = 0  # of them, the rows that found all lanes free
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
        """Queue `job`; blocks while a full slice for every lane waits, so that the caller's own queue fills up."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting < self._count * self._most)
            self._jobs.append(job)
            self._waiting += len(job.rows)
            self._arrived = time.monotonic()
            present = self._waiting + self._running
            self._present = max(present, _follow(self._present, present))
            self._changed.notify_all()

    def sums(self) -> Sums:
        """What was done so far."""
        with self._changed:
            return replace(self._sums)

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
        pieces, run = taken
        begun = time.monotonic()
        try:
            _run_pieces(pieces, run)
        finally:
            self._give_back(pieces, time.monotonic() - begun)
        return True

    def _take(self) -> tuple[list[Piece], Run] | None:
        """Wait for rows and take them; None when closed."""
        with self._changed:
            while not (share := self._share()):
                if self._closed and not self._waiting:
                    return None
                self._changed.wait(self._patience())
            alone = not self._busy and self._waiting < self._count
            self._all_taken = alone
            pieces = self._pop(self._waiting if alone else share)
            self._busy += 1
            self._changed.notify_all()
        return pieces, self._wide if alone else self._narrow

    def _share(self) -> int:
        """How many rows a free lane takes now; 0: wait."""
        if not self._waiting or self._all_taken:
            return 0
        if not self._busy:
            self._urgent = self._waiting
        free = self._count - self._busy
        if self._urgent:
            return min(self._most, _divide_up(self._urgent, free))
        if self._waiting < self._enough() and not self._closed and time.monotonic() < self._deadline():
            return 0
        return min(self._most, self._waiting, max(self._enough(), _divide_up(self._waiting, free)))

    def _enough(self) -> int:
        """A lane's share of the rows that are usually in the house."""
        return max(1, min(self._most, _divide_up(round(self._present), self._count)))

    def _deadline(self) -> float:
        return self._arrived + PATIENCE * self._enough() * (self._row_s or 0.0)

    def _patience(self) -> float | None:
        """Seconds to the moment when rows that wait are taken anyway; None: until something changes."""
        if not self._waiting or self._all_taken:
            return None
        return max(0.0, self._deadline() - time.monotonic())

    def _pop(self, count: int) -> list[Piece]:
        """Up to `count` rows from the head of the queue, all of one shape."""
        pieces: list[Piece] = []
        shape = self._jobs[0].rows.shape[1:]
        now = time.monotonic()
        while count and self._jobs and self._jobs[0].rows.shape[1:] == shape:
            job = self._jobs[0]
            if not job.taken:
                job.begun = now
                self._unanswered.add(job)
            rows = slice(job.taken, min(job.taken + count, len(job.rows)))
            pieces.append(Piece(job, rows))
            job.taken = rows.stop
            count -= rows.stop - rows.start
            if job.taken == len(job.rows):
                self._jobs.popleft()
        popped = _count(pieces)
        self._waiting -= popped
        self._running += popped
        self._urgent = max(0, self._urgent - popped)
        return pieces

    def _give_back(self, pieces: list[Piece], seconds: float) -> None:
        rows = _count(pieces)
        with self._changed:
            if not self._all_taken:
                self._row_s = _follow(self._row_s, seconds / rows)
            self._busy -= 1
            self._running -= rows
            self._all_taken = False
            self._count_up(pieces, rows)
            self._changed.notify_all()

    def _count_up(self, pieces: list[Piece], rows: int) -> None:
        self._sums.items += rows
        self._sums.batches += 1
        answered = {piece.job for piece in pieces if piece.job.ended} & self._unanswered
        self._unanswered -= answered
        self._sums.requests += len(answered)
        self._sums.queue_s += sum(job.begun - job.came for job in answered)
        self._sums.compute_s += sum(job.ended - job.begun for job in answered)


def _run_pieces(pieces: list[Piece], run: Run) -> None:
    """Run all rows as one batch; where that fails every request by itself, so that only the bad one fails."""
    arrays = [piece.array() for piece in pieces]
    try:
        outputs = run(arrays[0] if len(arrays) == 1 else np.concatenate(arrays))
    except Exception as error:
        if len(pieces) == 1:
            pieces[0].job.finish(pieces[0].rows, error)
            return
        for piece in pieces:
            _run_pieces([piece], run)
        return
    begin = 0
    for piece, array in zip(pieces, arrays, strict=True):
        piece.job.finish(piece.rows, outputs[begin : begin + len(array)])
        begin += len(array)


def _count(pieces: list[Piece]) -> int:
    return sum(piece.rows.stop - piece.rows.start for piece in pieces)


def _follow(average: float | None, newest: float) -> float:
    return newest if average is None else average + NEWEST * (newest - average)


def _divide_up(count: int, by: int) -> int:
    return -(-count // by)
