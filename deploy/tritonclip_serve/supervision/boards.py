"""Reads the board of a Python model's process: a small mapped file in which it says how it is.

Layout, float64 in little-endian order, times of CLOCK_MONOTONIC: heartbeat, busy_since (0: idle), limit_s, backlog_s,
and four that are reserved. The file is `boards/MODEL.INSTANCE.PID` in the run's folder.
"""

from __future__ import annotations

import mmap
import os
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tritonclip_serve.runs import BOARDS

_LAYOUT = struct.Struct("<8d")


@dataclass(frozen=True)
class Reading:
    """What a board says.

    Attributes:
        heartbeat: when the process was last seen at work.
        busy_since: when the oldest piece of work that still runs began; 0: it is idle.
        limit_s: seconds that one piece of work may take; 0: no limit.
    """

    heartbeat: float
    busy_since: float
    limit_s: float


class Board:
    """The mapped board of one process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            self._map = mmap.mmap(descriptor, _LAYOUT.size, access=mmap.ACCESS_READ)
        finally:
            os.close(descriptor)

    def read(self) -> Reading:
        """What it says now."""
        heartbeat, busy_since, limit_s, *_ = _LAYOUT.unpack(self._map)
        return Reading(heartbeat, busy_since, limit_s)

    def close(self) -> None:
        """Unmap it."""
        self._map.close()

    def remove(self) -> None:
        """Remove the file, whose process has ended."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)


def find_board(run_dir: Path, pid: int) -> Board | None:
    """The board of a process; None while it has none, or one that is not complete."""
    for path in (run_dir / BOARDS).glob(f"*.{pid}"):
        try:
            return Board(path)
        except (OSError, ValueError):
            continue
    return None
