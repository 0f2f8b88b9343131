"""Requests of an encoder, and the rows of several of them that run as one batch."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from clip_fair import Entry

Run = Callable[[np.ndarray], np.ndarray]
Answer = Callable[["np.ndarray | Exception"], None]


class Job(Entry):
    """One request: its rows [N, ...], and whom to tell the result.

    Args:
        rows: what to run.
        answer: called once, from any thread, with the outputs [N, ...], with what the graph raised, or with
            `OverloadError`.
        caller, timeout_s, came: see `Entry`.

    Attributes:
        begun, ended: when its first row was taken, and when it was answered; 0 before.
    """

    def __init__(
        self, rows: np.ndarray, answer: Answer, *, caller: str = "", timeout_s: float = 0.0, came: float | None = None
    ) -> None:
        # The time that a row takes grows with its length.
        costs = [float(max(1, rows[0].size))] * len(rows)
        super().__init__(costs, caller=caller, timeout_s=timeout_s, size=rows.nbytes, came=came)
        self.rows = rows
        self.begun = self.ended = 0.0
        self._answer = answer
        self._outputs: np.ndarray | None = None
        self._undone = len(rows)
        self._lock = threading.Lock()

    def finish(self, piece: slice, outputs: np.ndarray) -> None:
        """Note the outputs of some rows; the last ones answer the request."""
        with self._lock:
            if self._undone <= 0:
                return
            if self._outputs is None:
                self._outputs = np.empty((len(self.rows), *outputs.shape[1:]), outputs.dtype)
            self._outputs[piece] = outputs
            self._undone -= len(outputs)
            if self._undone:
                return
            result = self._outputs
        self._tell(result)

    def fail(self, error: Exception) -> None:
        """Answer with an error, unless it was answered."""
        with self._lock:
            if self._undone <= 0:
                return
            self._undone = 0
        self._tell(error)

    def _tell(self, result: np.ndarray | Exception) -> None:
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


def run_pieces(pieces: list[Piece], run: Run) -> None:
    """Run all rows as one batch; where that fails every request by itself, so that only the bad one fails."""
    arrays = [piece.array() for piece in pieces]
    try:
        outputs = run(arrays[0] if len(arrays) == 1 else np.concatenate(arrays))
    except Exception as error:
        if len(pieces) == 1:
            pieces[0].job.fail(error)
            return
        for piece in pieces:
            run_pieces([piece], run)
        return
    begin = 0
    for piece, array in zip(pieces, arrays, strict=True):
        piece.job.finish(piece.rows, outputs[begin : begin + len(array)])
        begin += len(array)


def count_rows(pieces: list[Piece]) -> int:
    return sum(piece.rows.stop - piece.rows.start for piece in pieces)
