"""Callers: threads with a client each, as users have them, that ask until they are told to stop."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterable
from types import TracebackType

from tritonclip_chaos.calls import CALLS, SHARES, WrongAnswer
from tritonclip_chaos.gaps import back_after
from tritonclip_chaos.material import Material
from tritonclip_chaos.records import Outcome, Sample
from tritonclip_client import ClipClient, ClipError, DeadlineExceededError, ServerUnavailableError
from tritonclip_client.options import DEFAULT_TIMEOUT_S

CALLERS = 16
OVERLOADED = "overloaded:"
# A client gives up at its deadline; what takes longer by so much had no answer.
LATE_S = 1.0
_POLL_S = 0.05


class Callers:
    """Sixteen ClipClients with the defaults, every one in a thread of its own. A context manager.

    Args:
        address: of the server.
        material: what they ask, and the answers.
        seed: decides what each of them asks.
        count: of callers.
        fresh: of these, how many connect anew for every call.
        pause_s: between two calls of one caller.
    """

    def __init__(
        self, address: str, material: Material, seed: int, *, count: int = CALLERS, fresh: int = 0, pause_s: float = 0.0
    ) -> None:
        self._address = address
        self._material = material
        self._pause_s = pause_s
        self._samples: list[Sample] = []
        self._end = threading.Event()
        kinds = share_out(count)
        self.kinds = tuple(dict.fromkeys(kinds))
        self._threads = [
            threading.Thread(target=self._ask, args=(kind, f"{seed}:{number}", number < fresh), daemon=True)
            for number, kind in enumerate(kinds)
        ]

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Let every caller end its call. One that never does is counted as lost."""
        self._end.set()
        deadline = time.monotonic() + DEFAULT_TIMEOUT_S + 5
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        stuck = sum(thread.is_alive() for thread in self._threads)
        now = time.monotonic()
        self._samples += [Sample("stuck", now, now, "lost", "a call that does not end")] * stuck
        self._threads = []

    def samples(self) -> list[Sample]:
        """What became of all calls since the last `take`."""
        return list(self._samples)

    def take(self) -> list[Sample]:
        """The same, and forget them."""
        taken = len(self._samples)
        samples, self._samples[:taken] = self._samples[:taken], []
        return samples

    def wait_good(self, after_s: float, patience_s: float) -> float | None:
        """Wait until every kind of call was answered well that began after a moment of `time.monotonic`.

        Returns:
            Seconds from that moment; None where it did not come to that within `patience_s` from now.
        """
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            back_s = back_after(self.samples(), after_s, self.kinds)
            if back_s is not None:
                return back_s
            time.sleep(_POLL_S)
        return None

    def _ask(self, kind: str, seed: str, fresh: bool) -> None:
        chosen = random.Random(seed)
        while not self._end.is_set():
            with ClipClient(self._address) as client:
                self._samples.append(ask(client, kind, self._material, chosen))
                while not (fresh or self._end.wait(self._pause_s)):
                    self._samples.append(ask(client, kind, self._material, chosen))


def ask(client: ClipClient, kind: str, material: Material, chosen: random.Random) -> Sample:
    """Make one call and say what became of it."""
    begin_s = time.monotonic()
    outcome: Outcome = "answered"
    exact, detail = True, ""
    try:
        exact = CALLS[kind](client, material, chosen)
    except WrongAnswer as error:
        outcome, detail = "wrong", str(error)
    except DeadlineExceededError as error:
        outcome, detail = "lost", str(error)
    except ServerUnavailableError as error:
        outcome, detail = "refused" if OVERLOADED in str(error) else "failed", str(error)
    except ClipError as error:
        outcome, detail = "failed", str(error)
    end_s = time.monotonic()
    if end_s - begin_s > DEFAULT_TIMEOUT_S + LATE_S:
        outcome, detail = "lost", f"answered after {end_s - begin_s:.1f} s"
    return Sample(kind, begin_s, end_s, outcome, detail, exact)


def share_out(count: int) -> list[str]:
    """The kinds of `count` callers, in the proportions of SHARES; each kind once, where there are enough."""
    total = sum(SHARES.values())
    given = {kind: max(1, round(count * share / total)) for kind, share in SHARES.items()}
    kinds = [kind for kind, number in given.items() for _ in range(number)]
    # Interleaved, so that a few of the first are of all kinds.
    order: Iterable[int] = sorted(range(len(kinds)), key=lambda place: kinds[:place].count(kinds[place]))
    return [kinds[place] for place in order][: max(count, 1)]
