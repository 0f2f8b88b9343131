"""Looks at a server's memory and handles while something is done to it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from types import TracebackType

from tritonclip_chaos.served import tree

EVERY_S = 0.5


@dataclass(frozen=True)
class Look:
    """One moment: of `time.monotonic`, megabytes (PSS) and open handles of the whole process tree."""

    at_s: float
    pss_mb: float
    handles: int


class Watch:
    """Looks twice a second, in a thread. A context manager.

    Args:
        pid: the root of the process tree; None looks at nothing, because the server is not ours.
        every_s: seconds between two looks.

    Attributes:
        looks: so far.
    """

    def __init__(self, pid: int | None, every_s: float = EVERY_S) -> None:
        self.looks: list[Look] = []
        self._pid = pid
        self._every_s = every_s
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        if self._pid is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        if self._pid is not None:
            self._thread.join()

    @property
    def worst_mb(self) -> float:
        """The most memory seen; 0 where none was looked at."""
        return max((look.pss_mb for look in self.looks), default=0.0)

    def take_worst_mb(self) -> float:
        """The most memory seen since the last time."""
        worst = self.worst_mb
        self.looks = []
        return worst

    def _run(self) -> None:
        assert self._pid is not None
        while not self._end.wait(self._every_s):
            processes = tree.descendants(self._pid)
            look = Look(time.monotonic(), tree.pss_mb(processes), tree.handles(processes))
            self.looks = [*self.looks, look]
