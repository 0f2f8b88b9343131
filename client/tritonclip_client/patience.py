"""What all calls of one client share: how often they repeat, and how long they wait for one answer."""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict, deque
from collections.abc import Hashable
from typing import Final

from .causes import Cause
from .errors import ClipError, ServerUnavailableError
from .steps import Rpc

REPEATED: Final = frozenset(Cause) - {Cause.FINAL}

FIRST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 1.0
# A server may be starting; a wrong address must not look like that for the whole timeout of a call.
FIRST_CONTACT_S: Final = 8.0

SHORTEST_ATTEMPT_S: Final = 2.0
_FACTOR: Final = 10
_SAMPLES: Final = 128
_ENOUGH_SAMPLES: Final = 20
_UNKNOWN_SHARE: Final = 2 / 3


class Budget:
    """Tokens for repetitions that cost an overloaded server work: some at first, and a share of all requests.

    So the client adds at most a tenth to the load that its callers make, and one request in two seconds.
    """

    def __init__(self, reserve: float = 10.0, ratio: float = 0.1, per_second: float = 0.5) -> None:
        self._most, self._ratio, self._per_second = reserve, ratio, per_second
        self._tokens = reserve
        self._filled_at = time.monotonic()
        self._lock = threading.Lock()

    def earn(self) -> None:
        """A request is sent for the first time."""
        with self._lock:
            self._fill(self._ratio)

    def take(self) -> bool:
        """Pay for one repetition, if there is a token."""
        with self._lock:
            self._fill()
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True

    def owe(self) -> None:
        """Pay for one repetition that has to be, even with what is still to be earned."""
        with self._lock:
            self._fill()
            self._tokens -= 1

    def has_token(self) -> bool:
        """Whether one could be paid for now."""
        with self._lock:
            self._fill()
            return self._tokens >= 1

    def _fill(self, earned: float = 0.0) -> None:
        now = time.monotonic()
        grown = self._tokens + earned + (now - self._filled_at) * self._per_second
        self._tokens, self._filled_at = min(self._most, grown), now


class Latencies:
    """How long answers took, by kind of request."""

    def __init__(self) -> None:
        self._seen: defaultdict[Hashable, deque[float]] = defaultdict(lambda: deque(maxlen=_SAMPLES))
        self._lock = threading.Lock()

    def add(self, kind: Hashable, seconds: float) -> None:
        """An answer came."""
        with self._lock:
            self._seen[kind].append(seconds)

    def longest(self, kind: Hashable) -> float | None:
        """The longest of late, in seconds; None where too few were seen."""
        with self._lock:
            seen = self._seen[kind]
            return max(seen) if len(seen) >= _ENOUGH_SAMPLES else None


class Patience:
    """When a request is repeated, and after how long one attempt is given up. Safe for many threads.

    Args:
        repeated: the causes after which a request is sent again.
    """

    def __init__(self, repeated: frozenset[Cause] = REPEATED) -> None:
        self._repeated = repeated
        self._budget = Budget()
        self._latencies = Latencies()
        self._reached = False

    def begin(self) -> None:
        """A request is about to be sent for the first time."""
        self._budget.earn()

    def answered(self, rpc: Rpc, seconds: float) -> None:
        """An attempt was answered."""
        self._reached = True
        self._latencies.add(rpc.kind, seconds)

    def attempt_s(self, rpc: Rpc, stalls: int) -> float:
        """Seconds for the next attempt: what is left of the call, or less, so that a lost request can be repeated.

        A process that dies takes requests with it that Triton then never answers. Where the budget is used up every
        attempt has all the time, for slow answers are then likelier than lost ones.
        """
        left_s = rpc.deadline.remaining()
        if Cause.STALLED not in self._repeated or not self._budget.has_token():
            return left_s
        longest = self._latencies.longest(rpc.kind)
        limit_s = _UNKNOWN_SHARE * left_s if longest is None else _FACTOR * longest
        limit_s = max(SHORTEST_ATTEMPT_S, limit_s) * 2.0**stalls
        return min(limit_s, left_s)

    def pause_s(self, error: ClipError, rpc: Rpc, failures: int) -> float | None:
        """Seconds before the request is sent again; None where it is not, and the error stands.

        Args:
            failures: attempts of this request that failed before this one.
        """
        cause = error.cause
        if cause is not Cause.UNREACHABLE:
            self._reached = True
        if cause not in self._repeated or self._is_hopeless(cause, rpc):
            return None
        hint_s = error.retry_after_s if isinstance(error, ServerUnavailableError) else None
        pause_s = backoff_s(failures) if hint_s is None else hint_s * random.uniform(1.0, 1.5)
        if pause_s >= rpc.deadline.remaining():
            return None
        if cause is Cause.OVERLOADED and not self._budget.take():
            return None
        if cause is Cause.STALLED:
            self._budget.owe()
        return pause_s

    def _is_hopeless(self, cause: Cause, rpc: Rpc) -> bool:
        return cause is Cause.UNREACHABLE and not self._reached and rpc.deadline.elapsed() > FIRST_CONTACT_S


def backoff_s(failures: int) -> float:
    """A pause drawn from 0 to a bound that doubles, so that clients that failed together do not come back together."""
    return random.uniform(0.0, min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(failures, 10)))
