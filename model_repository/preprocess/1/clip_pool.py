"""Decodes the images of all requests at once, in decoder processes: small ones never wait for others.

The two kinds have doors and processes of their own. A tiny image is decoded in the process that took it in: to send it
to another would cost more than it saves. No other is, because resizing holds the interpreter's lock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from queue import SimpleQueue
from typing import TypeVar

import clip_door
import clip_preprocess
import numpy as np
from clip_decoders import Decoder
from clip_preprocess import ImageError, Pixels, Spent, settings_from
from clip_weight import weigh

__all__ = ["COUNTS", "ImageError", "Images", "OverloadError", "Pool"]

OverloadError = clip_door.OverloadError
Result = TypeVar("Result")
Answer = Callable[["Pixels | Exception"], None]

ENDED = "tritonclip_preprocess_decoders_ended_total"
COUNTS = {
    **clip_preprocess.COUNTS,
    ENDED: "Decoder processes that ended at their work, mostly of too costly an image",
    **clip_door.COUNTS,
}
# Requests that may wait for each decoder process.
MOST_WAITING = 32
# The least that an image costs, of a core's seconds.
_LEAST_S = 1e-4
# What costs less is tiny; while nobody waits it is done at once, without waking another thread.
TINY_S = 2e-3


def named(index: int, do: Callable[[], Result]) -> Result:
    """Do it, with the image's number in front of a refusal."""
    try:
        return do()
    except ImageError as error:
        raise ImageError(f"image[{index}]: {error}") from error


@dataclass(frozen=True)
class Images:
    """What one request asks for.

    Attributes:
        encoded: the images, at least one.
        caller, timeout_s, came: as in `clip_fair.Entry`.
    """

    encoded: Sequence[bytes]
    caller: str = ""
    timeout_s: float = 0.0
    came: float | None = None


class _Request:
    """The tickets of one request, one at each door that it needs."""

    def __init__(self, images: Images, pixels: Pixels, answer: Answer) -> None:
        self._images, self._pixels, self._answer = images, pixels, answer
        self._lock = threading.Lock()
        self._left = 0
        self._answered = False

    def ticket(
        self, places: list[int], costs: list[float], decode: Callable[[bytes, float], Pixels]
    ) -> clip_door.Ticket:
        """For the images at `places`; `decode` gets each with its cost. All are made before one is handed in."""
        self._left += 1

        def work(piece: int) -> None:
            if not self._answered:
                index = places[piece]
                self._pixels[index] = named(index, partial(decode, self._images.encoded[index], costs[piece]))

        return clip_door.Ticket(
            costs,
            work,
            self._end,
            caller=self._images.caller,
            timeout_s=self._images.timeout_s,
            size=sum(len(self._images.encoded[index]) for index in places),
            came=self._images.came,
        )

    def _end(self, error: Exception | None) -> None:
        with self._lock:
            self._left -= 1
            if self._answered or (error is None and self._left):
                return
            self._answered = True
        self._answer(self._pixels if error is None else error)


class _Unseen:
    """A board for the door of the decoder processes: their limits bound how long an image takes, and what waits there
    does not hold up anybody else."""

    is_draining = False

    def begin(self) -> int:
        return 0

    def end(self, number: int) -> None:
        pass

    def set_backlog(self, seconds: float) -> None:
        pass


class Processes:
    """A set of decoder processes, lent to one thread each.

    Args:
        parameters: of config.pbtxt.
        count: of processes.
        niceness: how far they stand behind whoever else computes on this machine.
        lazy: start each when it is first asked for.
    """

    def __init__(self, parameters: Mapping[str, str], count: int, niceness: int, *, lazy: bool = False) -> None:
        self.all = [Decoder(parameters, niceness, lazy=lazy) for _ in range(count)]
        self._free: SimpleQueue[Decoder] = SimpleQueue()
        for decoder in self.all:
            self._free.put(decoder)

    @contextmanager
    def one(self) -> Iterator[Decoder]:
        """Lend a free one, after waiting for it."""
        decoder = self._free.get()
        try:
            yield decoder
        finally:
            self._free.put(decoder)


class Pool:
    """Where the images of all requests are decoded.

    Args:
        parameters: of config.pbtxt.
        board: of this process.
        behind: seconds of work that wait where the pixels go.
    """

    def __init__(self, parameters: Mapping[str, str], board: clip_door.Board, behind: Callable[[], float]) -> None:
        clip_preprocess.keep_memory()
        self.settings = settings_from(parameters)
        self._spent: list[Spent] = []
        self._threads = threading.local()
        count = int(parameters["decoder_processes"])
        # Until each has started a thread decodes in its place, so that a model that comes back need not wait for them.
        self._for_small = Processes(parameters, int(parameters["threads"]), niceness=0, lazy=True)
        # What they cost is not known before.
        self._for_others = Processes(parameters, count, niceness=5)
        limits = clip_door.Limits.of(parameters)
        few = replace(limits, entries=min(limits.entries, MOST_WAITING * count))
        self._small = clip_door.Door(self.workers(parameters), board, limits, behind)
        self._others = clip_door.Door(count, _Unseen(), few, behind)

    def workers(self, parameters: Mapping[str, str]) -> int:
        """Small images that are done at a time."""
        return int(parameters["threads"])

    def refusal(self, caller: str, timeout_s: float) -> OverloadError | None:
        """Why the smallest request would be refused now; None: it would not."""
        return self._small.refusal(_LEAST_S, caller, timeout_s)

    def submit(self, images: Images, answer: Answer) -> None:
        """Decode `images`; `answer` is called once, with their pixels [N, ...] or what went wrong.

        Raises:
            ImageError: an image is empty or beyond a limit.
        """
        weights = [named(index, partial(weigh, encoded, self.settings)) for index, encoded in enumerate(images.encoded)]
        request = _Request(images, np.empty((len(weights), *self.settings.pixel_shape), np.uint8), answer)
        parts = []
        for small, door, decode in ((True, self._small, self.decode), (False, self._others, self._decode_apart)):
            places = [index for index, weight in enumerate(weights) if weight.small == small]
            if places:
                parts.append((door, request.ticket(places, [weights[index].seconds for index in places], decode)))
        for door, ticket in parts:
            door.submit(ticket, here=door is self._small and sum(ticket.costs) <= TINY_S)

    def decode(self, encoded: bytes, seconds: float) -> Pixels:
        """Decode a small image, here or in a process.

        Args:
            seconds: estimate of what it takes.
        """
        if seconds > TINY_S:
            with self._for_small.one() as decoder:
                if decoder.is_ready():
                    return decoder.decode(encoded)
        return clip_preprocess.preprocess(encoded, self.settings, self.spent())

    def spent(self) -> Spent:
        """What the calling thread has spent."""
        if not hasattr(self._threads, "spent"):
            self._threads.spent = Spent()
            self._spent.append(self._threads.spent)
        spent: Spent = self._threads.spent
        return spent

    def counts(self) -> dict[str, float]:
        """By the names in COUNTS."""
        decoders = (*self._for_small.all, *self._for_others.all)
        both = (*self._spent, *(decoder.spent for decoder in decoders))
        sums = Spent(*(sum(getattr(one, name) for one in both) for name in ("images", "decode_s", "resize_s")))
        ended = sum(decoder.ended for decoder in decoders)
        doors = self._small.counts(), self._others.counts()
        turned_away = {name: sum(counts[name] for counts in doors) for name in clip_door.COUNTS}
        return {**sums.counts(), ENDED: float(ended), **turned_away}

    def close(self) -> None:
        """Do what waits, then end threads and processes."""
        self._small.close()
        self._others.close()
        for decoder in (*self._for_small.all, *self._for_others.all):
            decoder.close()

    def _decode_apart(self, encoded: bytes, _seconds: float) -> Pixels:
        with self._for_others.one() as decoder:
            return decoder.decode(encoded)
