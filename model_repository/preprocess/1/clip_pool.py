"""Decodes the images of all requests at once: small ones on threads, all others in decoder processes.

The two kinds wait in queues of their own, so small images never wait for others. Each request is answered when its
last image is done.
"""

from __future__ import annotations

import threading
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import clip_preprocess
import numpy as np
from clip_decoders import Decoder, DecoderError
from clip_preprocess import PictureError, Pixels, Spent, preprocess, settings_from
from clip_weight import weigh

ENDED = "tritonclip_preprocess_decoders_ended"
COUNTS = {**clip_preprocess.COUNTS, ENDED: "Decoder processes that ended at their work, mostly of too costly an image"}

Answer = Callable[["Pixels | Exception"], None]
Decode = Callable[[bytes], Pixels]

# Images that may wait for decoder processes, for each process. They can take the CPU limit each.
MOST_WAITING = 16


class OverloadedError(RuntimeError):
    """There is no room for the request now."""


class Batch:
    """The images of one request, and whom to tell their pixels.

    Args:
        images: encoded.
        shape: of one image's pixels.
        answer: called once, from any thread, with the pixels [N, ...], or with what went wrong with the first image
            that failed.
    """

    def __init__(self, images: Sequence[bytes], shape: tuple[int, ...], answer: Answer) -> None:
        self.images = images
        self._pixels = np.empty((len(images), *shape), np.uint8)
        self._left = len(images)
        self._failed: tuple[int, Exception] | None = None
        self._lock = threading.Lock()
        self._answer = answer

    def run(self, index: int, decode: Decode) -> None:
        """Decode one image, unless one before it has failed."""
        result: Pixels | Exception | None = None
        if self._failed is None or self._failed[0] > index:
            try:
                result = decode(self.images[index])
            except Exception as error:
                result = error
        self.finish(index, result)

    def finish(self, index: int, result: Pixels | Exception | None) -> None:
        """Note one image's pixels, what went wrong with it, or that it was left out."""
        if isinstance(result, np.ndarray):
            self._pixels[index] = result
        with self._lock:
            if isinstance(result, Exception) and (self._failed is None or index < self._failed[0]):
                self._failed = index, result
            self._left -= 1
            if self._left:
                return
        try:
            self._answer(self._pixels if self._failed is None else _named(*self._failed))
        except Exception:  # an answer that cannot be sent must not cost the others theirs
            traceback.print_exc()


def _named(index: int, error: Exception) -> Exception:
    """The error, with the image's number in front where the image is the reason."""
    return PictureError(f"image[{index}]: {error}") if isinstance(error, PictureError) else error


@dataclass(frozen=True)
class Task:
    """One image of a request."""

    batch: Batch
    index: int


class Lane:
    """Threads that decode what waits, first come, first served.

    Args:
        begin: called in each thread for what decodes there, and what ends that.
        count: the number of threads.
        most: tasks that may wait; 0: any number.
    """

    def __init__(self, begin: Callable[[], tuple[Decode, Callable[[], None]]], count: int, most: int = 0) -> None:
        self._begin, self._most = begin, most
        self._waiting: deque[Task] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def submit(self, task: Task) -> None:
        with self._changed:
            full = self._most and len(self._waiting) >= self._most
            if not full:
                self._waiting.append(task)
                self._changed.notify()
        if full:
            error = OverloadedError(f"overloaded: {self._most} large images wait already; retry in 1.0 s")
            task.batch.finish(task.index, error)

    def close(self) -> None:
        """Do what waits, then end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        decode, end = self._begin()
        try:
            while self._serve(decode):
                pass
        finally:
            end()

    def _serve(self, decode: Decode) -> bool:
        """A frame of its own, so that an idle thread holds no image."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if not self._waiting:
                return False
            task = self._waiting.popleft()
        task.batch.run(task.index, decode)
        return True


class Pool:
    """Where the images of all requests are decoded.

    Args:
        parameters: of config.pbtxt; those of `clip_settings`.
        threads: that decode small images.
        processes: that decode all others.
    """

    def __init__(self, parameters: Mapping[str, str], threads: int, processes: int) -> None:
        self._settings = settings_from(parameters)
        self._parameters = parameters
        self._spent: list[Spent] = []
        self._decoders: list[Decoder] = []
        self._small = Lane(self._begin_thread, threads)
        self._others = Lane(self._begin_process, processes, processes * MOST_WAITING)

    def submit(self, images: Sequence[bytes], answer: Answer) -> None:
        """Decode `images`, at least one; `answer` is told as `Batch` says."""
        batch = Batch(images, self._settings.pixel_shape, answer)
        try:
            lanes = [self._lane(index, encoded) for index, encoded in enumerate(images)]
        except PictureError as error:
            answer(error)
            return
        for index, lane in enumerate(lanes):
            lane.submit(Task(batch, index))

    def counts(self) -> dict[str, float]:
        """By the names in `clip_preprocess.COUNTS`, and the decoder processes that ended."""
        both = (*self._spent, *(decoder.spent for decoder in self._decoders))
        sums = Spent(*(sum(getattr(one, name) for one in both) for name in ("pictures", "decode_s", "resize_s")))
        return {**sums.counts(), ENDED: float(sum(decoder.ended for decoder in self._decoders))}

    def close(self) -> None:
        """Do what waits, then end threads and processes."""
        self._small.close()
        self._others.close()

    def _lane(self, index: int, encoded: bytes) -> Lane:
        try:
            return self._small if weigh(encoded, self._settings).small else self._others
        except PictureError as error:
            raise PictureError(f"image[{index}]: {error}") from error

    def _begin_thread(self) -> tuple[Decode, Callable[[], None]]:
        spent = Spent()
        self._spent.append(spent)
        return lambda encoded: preprocess(encoded, self._settings, spent), lambda: None

    def _begin_process(self) -> tuple[Decode, Callable[[], None]]:
        decoder = Decoder(self._parameters)
        self._decoders.append(decoder)
        return decoder.decode, decoder.close
