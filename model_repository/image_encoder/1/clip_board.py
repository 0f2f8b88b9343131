"""What a model's process tells the others of its machine: that it lives, what it works at, and how long its queue is.

One small file a process, `$TRITONCLIP_RUN_DIR/boards/<model>.<instance>.<pid>`, mapped into memory, so that telling
and reading cost no call. Little-endian float64 x 8:

    0 heartbeat: `time.monotonic()`, written four times a second; the clock is common to all processes of a machine
    1 busy_since: `time.monotonic()` when the oldest piece of work that still runs began, 0 while idle
    2 limit_s: seconds that one piece of work may take before the process counts as hung
    3 backlog_s: estimated seconds until a request that came now would be finished here
    4 to 7: 0

Where the variable is not set nothing is written, and nobody's backlog is known.
"""

from __future__ import annotations

import itertools
import mmap
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

RUN_DIR = "TRITONCLIP_RUN_DIR"
FOLDER = "boards"
# While this file is in the run's folder, the server answers what has begun, and takes nothing new in.
DRAINING = "draining"
CELLS, CELL_BYTES = 8, 8
HEARTBEAT, BUSY_SINCE, LIMIT_S, BACKLOG_S = range(4)
BEAT_S = 0.25
# Generous: a model that is only slow must never be taken for one that hangs.
LEAST_LIMIT_S, MOST_LIMIT_S, TIMES_LONGEST = 2.0, 60.0, 10.0
# How often a reader looks whether another process has taken the place of the one that it reads.
LOOK_S = 0.25
# A process without a heartbeat for so long is dead or stopped, and its backlog means nothing.
STALE_S = 3.0


def say(line: str) -> None:
    """Add a line to the server's log, if that can be written: a full disk must not keep a model from loading."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


class Board:
    """This process's own.

    Args:
        model, instance: `model_name` and `model_instance_name` of the model's `initialize`.

    Attributes:
        is_draining: whether the server ends, and takes nothing new in.
    """

    def __init__(self, model: str, instance: str) -> None:
        self.is_draining = False
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._begun: dict[int, float] = {}  # in the order in which they began
        self._longest = 0.0
        self._ended = threading.Event()
        self._path = _path_of(model, instance)
        self._cells: memoryview[float] = memoryview(bytearray(CELLS * CELL_BYTES)).cast("d")
        if self._path is not None:
            self._cells = _create(self._path)
            threading.Thread(target=self._beat, daemon=True).start()
        self._cells[LIMIT_S] = LEAST_LIMIT_S

    def begin(self) -> int:
        """A piece of work begins; the number goes to `end`."""
        with self._lock:
            number, now = next(self._numbers), time.monotonic()
            self._begun[number] = now
            if len(self._begun) == 1:
                self._cells[BUSY_SINCE] = now
            return number

    def end(self, number: int) -> None:
        """The piece of work with that number ended, well or not."""
        with self._lock:
            self._longest = max(self._longest, time.monotonic() - self._begun.pop(number))
            self._cells[BUSY_SINCE] = next(iter(self._begun.values()), 0.0)
            self._cells[LIMIT_S] = min(MOST_LIMIT_S, max(LEAST_LIMIT_S, TIMES_LONGEST * self._longest))

    def set_backlog(self, seconds: float) -> None:
        """Tell how long a request that comes now would take to be finished here."""
        self._cells[BACKLOG_S] = seconds

    def close(self) -> None:
        """End the heartbeat and remove the file."""
        self._ended.set()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _beat(self) -> None:
        draining = Path(os.environ[RUN_DIR], DRAINING)
        while not self._ended.is_set():
            self._cells[HEARTBEAT] = time.monotonic()
            self.is_draining = draining.exists()
            self._ended.wait(BEAT_S)


class Backlog:
    """Reads the backlog of another model; 0 while it has no process that lives and tells one.

    Args:
        model: its name.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._look_at = 0.0
        self._boards: dict[Path, memoryview[float]] = {}

    def seconds(self) -> float:
        """Of its least loaded process, which is the one that takes the next request."""
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + LOOK_S
            self._boards = self._look()
        fresh = (cells[BACKLOG_S] for cells in self._boards.values() if now - cells[HEARTBEAT] < STALE_S)
        return min(fresh, default=0.0)

    def _look(self) -> dict[Path, memoryview[float]]:
        boards = {}
        for path in live_boards(self._model):
            with suppress(OSError):  # it ended in between
                boards[path] = self._boards.get(path) or _map(path, mmap.ACCESS_READ)
        return boards


def live_boards(model: str) -> list[Path]:
    """The boards of the model's processes that live."""
    run_dir = os.environ.get(RUN_DIR)
    if not run_dir:
        return []
    paths = (Path(run_dir) / FOLDER).glob(f"{model}.*.*")
    return [path for path in paths if path.name.split(".")[0] == model and is_alive(path)]


def is_alive(board: Path) -> bool:
    """Whether the process that a board's name ends in lives."""
    pid = board.name.rpartition(".")[2]
    return pid.isdecimal() and Path("/proc", pid).exists()


def _path_of(model: str, instance: str) -> Path | None:
    run_dir = os.environ.get(RUN_DIR)
    return Path(run_dir) / FOLDER / f"{model}.{instance}.{os.getpid()}" if run_dir else None


def _create(path: Path) -> memoryview[float]:
    """A file that was never seen half made; those that earlier processes of the same instance left go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for other in path.parent.glob(f"{path.name.rpartition('.')[0]}.*"):
        if not is_alive(other):
            other.unlink(missing_ok=True)
    made = path.with_name(f".{path.name}")
    made.write_bytes(bytes(CELLS * CELL_BYTES))
    cells = _map(made, mmap.ACCESS_WRITE)
    cells[HEARTBEAT] = time.monotonic()
    made.replace(path)
    return cells


def _map(path: Path, access: int) -> memoryview[float]:
    with path.open("r+b" if access == mmap.ACCESS_WRITE else "rb") as file:
        # Of whole float64, which are stored at once: a reader never sees half of a number.
        return memoryview(mmap.mmap(file.fileno(), CELLS * CELL_BYTES, access=access)).cast("d")
