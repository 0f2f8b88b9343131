"""Who is next, who waited too long, and who would: the queue inside a model, fair between its callers.

Self-clocked fair queueing: while it has work waiting, every caller gets the same share of the model, however many
requests it sends. A request is taken piece by piece (an image, a row), so that a large one holds nobody up.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

# Of a request's timeout, the part that it may wait in one queue: there are two, at the door and at the encoder, each
# knows the whole timeout only, and the work needs time too.
WAIT_SHARE = 0.5
# Of its timeout, the part after which its answer must be expected, or it is not taken in.
WHOLE_SHARE = 0.9
# Weight of the newest piece of work in what a unit of cost takes.
NEWEST = 1 / 16
# What is measured before anybody is refused for it: so many pieces, or some that took so long; the first ones are slow.
ENOUGH_MEASURED, ENOUGH_S, FEW_MEASURED = 16, 1.0, 4
LEAST_RETRY_S = 0.1
# How often what waits too long is looked for.
SWEEP_S = 0.02
_CALLER_LENGTH = 128


class OverloadError(Exception):
    """A request was not served because it could not be in time: UNAVAILABLE, and when to come back.

    Args:
        what: names the reason.
        retry_s: seconds after which to try again.
    """

    def __init__(self, what: str, retry_s: float) -> None:
        super().__init__(f"overloaded: {what}; retry in {max(LEAST_RETRY_S, retry_s):.1f} s")


@dataclass(frozen=True)
class Limits:
    """What bounds a queue.

    Attributes:
        seconds: the timeout of requests that come without one, and the longest that counts.
        entries, size: requests that wait, and their bytes.
    """

    seconds: float = 20.0
    entries: int = 1024
    size: int = 128 << 20

    @classmethod
    def of(cls, parameters: Mapping[str, str]) -> Limits:
        """As the parameters of a model's config say."""
        names = ("queue_seconds", "max_queue_size", "queue_bytes")
        seconds, entries, size = (float(parameters[name]) for name in names)
        return cls(seconds, int(entries), int(size))

    def timeout_s(self, timeout_s: float) -> float:
        """The one that counts for a request with this one, 0 for none."""
        return min(timeout_s, self.seconds) if timeout_s > 0 else self.seconds


class Entry:
    """A request whose pieces wait for their turn.

    Args:
        costs: of its pieces, at least one, in any unit proportional to the time that they take.
        caller: with whose other requests it shares; "" for a caller of its own.
        timeout_s: seconds from `came` to when its caller gives up; 0 for none.
        size: bytes that it keeps in memory.
        came: of `time.monotonic`; default: now.

    Attributes:
        taken: pieces whose turn it was.
        left: cost of the others.
        waits: whether it is in a queue.
    """

    def __init__(
        self,
        costs: Sequence[float],
        *,
        caller: str = "",
        timeout_s: float = 0.0,
        size: int = 0,
        came: float | None = None,
    ) -> None:
        self.costs, self.caller, self.timeout_s, self.size = costs, caller[:_CALLER_LENGTH], timeout_s, size
        self.came = time.monotonic() if came is None else came
        self.taken = 0
        self.waits = False
        self.left = math.fsum(costs)
        self.tag = 0.0
        self.number = 0

    def __lt__(self, other: Entry) -> bool:
        return (self.tag, self.number) < (other.tag, other.number)


@dataclass
class Flow:
    """What one caller has in the queue: the tag of its last piece, the cost of all that wait, and its entries."""

    tag: float
    waiting: float = 0.0
    entries: int = 0


class Pace:
    """Seconds that a unit of cost takes: a running average over pieces of work, large ones counting for more."""

    def __init__(self) -> None:
        self._seconds = self._cost = 0.0
        self._measured, self._in_all_s = 0, 0.0

    def note(self, seconds: float, cost: float) -> None:
        """Work of that cost took so long."""
        self._measured += 1
        self._in_all_s += seconds
        self._seconds += NEWEST * (seconds - self._seconds)
        self._cost += NEWEST * (cost - self._cost)

    @property
    def seconds(self) -> float:
        """0 until enough was measured."""
        long_enough = self._in_all_s >= ENOUGH_S and self._measured >= FEW_MEASURED
        is_known = long_enough or self._measured >= ENOUGH_MEASURED
        return self._seconds / self._cost if is_known and self._cost else 0.0


E = TypeVar("E", bound="Entry")


class FairQueue(Generic[E]):
    """Entries by turn. Not safe between threads: its owner has a lock.

    Attributes:
        pieces, waiting: the number of pieces that wait, and their cost.
        size: bytes of all entries.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.pieces = 0
        self.waiting = 0.0
        self.size = 0
        self._heap: list[E] = []
        self._flows: dict[str | int, Flow] = {}  # of those who have an entry
        self._now = 0.0  # the tag of the newest piece whose turn it was
        self._numbers = itertools.count()
        self._sweep_at = 0.0

    def __len__(self) -> int:
        return len(self._heap)

    def first(self) -> E:
        """Whose turn it is."""
        return self._heap[0]

    def push(self, entry: E) -> None:
        """Let an entry wait."""
        entry.number = next(self._numbers)
        flow = self._flows.setdefault(_key(entry), Flow(self._now))
        start = max(self._now, flow.tag)
        entry.tag = start + entry.costs[0]
        flow.tag = start + entry.left
        flow.waiting += entry.left
        flow.entries += 1
        self.waiting += entry.left
        self.size += entry.size
        self.pieces += len(entry.costs)
        entry.waits = True
        heapq.heappush(self._heap, entry)

    def take(self) -> tuple[E, int]:
        """The next piece: its entry, and its index there."""
        entry = self._heap[0]
        piece = entry.taken
        cost = entry.costs[piece]
        self._now = max(self._now, entry.tag)
        entry.taken += 1
        self.pieces -= 1
        if entry.taken == len(entry.costs):
            heapq.heappop(self._heap)
            self._leave(entry)
            self._settle()
        else:
            entry.left -= cost
            entry.tag += entry.costs[entry.taken]
            self._flows[_key(entry)].waiting -= cost
            self.waiting -= cost
            heapq.heapreplace(self._heap, entry)
        return entry, piece

    def overdue(self, now: float) -> list[E]:
        """Removes and returns what waited its share and was not begun, or was begun and is past its timeout."""
        if now < self._sweep_at:
            return []
        self._sweep_at = now + SWEEP_S
        return self.remove([entry for entry in self._heap if now >= self._ends(entry)])

    def crowded_out(self, entry: E) -> list[E] | None:
        """Removes and returns those whose turn comes last, to make room for `entry`; None: its own would."""
        out: list[E] = []
        entries, size = len(self._heap) + 1 - self.limits.entries, self.size + entry.size - self.limits.size
        if not self._heap or (entries <= 0 and size <= 0):
            return out
        flow = self._flows.get(entry.caller)
        tag = max(self._now, flow.tag if flow else 0.0) + entry.costs[0]
        for other in sorted(self._heap, reverse=True):
            if other.taken or other.tag <= tag:
                return None
            out.append(other)
            size -= other.size
            if len(out) >= entries and size <= 0:
                return self.remove(out)
        return None

    def remove(self, entries: list[E]) -> list[E]:
        """Takes those of `entries` out that wait; returns all of them."""
        there = [entry for entry in entries if entry.waits]
        if there:
            for entry in there:
                # Nobody pays for what is not done.
                self._flows[_key(entry)].tag -= entry.left
                self._leave(entry)
            self._heap = [entry for entry in self._heap if entry.waits]
            heapq.heapify(self._heap)
            self._settle()
        return entries

    def refusal(
        self, caller: str, cost: float, timeout_s: float, unit_s: float, running: float, behind_s: float
    ) -> OverloadError | None:
        """Why a request of that cost could not be answered in time; None: it can.

        Args:
            timeout_s: of the request, 0 for none.
            unit_s: seconds in which all workers together do a unit of cost.
            running: cost of what runs already.
            behind_s: seconds of work that wait behind this queue.
        """
        timeout = self.limits.timeout_s(timeout_s)
        wait = (self._ahead(caller, cost) + running / 2) * unit_s + behind_s
        # While nothing waits everything is taken, so that a wrong estimate corrects itself.
        if not wait or (wait <= WAIT_SHARE * timeout and wait + cost * unit_s <= WHOLE_SHARE * timeout):
            return None
        return OverloadError(f"{wait:.2g} s of work wait, and the request has {timeout:.2g} s", wait / 2)

    def _ahead(self, caller: str, cost: float) -> float:
        """Cost that comes before the end of a new entry, its own left out.

        While it waits, every other caller gets no more than its own does.
        """
        flow = self._flows.get(caller)
        own = flow.waiting if flow else 0.0
        others = len(self._flows) - (flow is not None)
        return own + min(max(0.0, self.waiting - own), others * (own + cost))

    def _ends(self, entry: E) -> float:
        share = 1.0 if entry.taken else WAIT_SHARE
        return entry.came + share * self.limits.timeout_s(entry.timeout_s)

    def _leave(self, entry: E) -> None:
        flow = self._flows[_key(entry)]
        flow.entries -= 1
        flow.waiting -= entry.left
        self.waiting -= entry.left
        self.size -= entry.size
        self.pieces -= len(entry.costs) - entry.taken
        entry.left, entry.waits = 0.0, False
        if not flow.entries:
            del self._flows[_key(entry)]

    def _settle(self) -> None:
        if not self._heap:
            # Rounding must not add up, and while nobody waits nobody is owed anything.
            self.waiting = self._now = 0.0


def _key(entry: Entry) -> str | int:
    return entry.caller or entry.number
