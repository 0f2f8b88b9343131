"""The blocking client."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from .base import BaseClient
from .errors import ClipError, from_triton
from .gather import Gathering, Report, Running
from .health import Health
from .images import ImageInput
from .long_texts import Aggregate, LongText
from .results import Classification, Similarity
from .spec import ServingSpec
from .steps import CallFlow, Flow, Gather, Pause, Rpc, T, Work
from .texts import TextInput


class ClipClient(BaseClient):
    """A CLIP behind gRPC. A context manager; one client may be used from many threads.

    Every call ends within its `timeout_s`, repetitions included. A request is repeated, with growing random
    pauses, where its failure passes by itself: the server is not reachable, overloaded, or a model is being
    started again. What the caller did wrong is never repeated.

    Args:
        address: host:port of the server's gRPC endpoint.
        timeout_s: seconds for a whole call, where the call itself gives none.
        retry: repeat requests; without, each is sent once, as a load generator wants it.
        max_in_flight: requests of one call that are under way at the same time.
        tls: encrypt the connection.
        headers: sent with every request, for example credentials. The server shares its time fairly between
            the values of `tritonclip-caller`; without one, a random name stands for this client.

    Raises:
        InvalidInputError: from here, a value that cannot work. Every call may raise any `ClipError`.
    """

    _triton: InferenceServerClient | None

    def _start(self) -> None:
        self._triton = InferenceServerClient(**self._connection)

    def __enter__(self) -> ClipClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; what other threads have in flight is cancelled."""
        triton, self._triton = self._triton, None
        if triton is not None:
            triton.close()

    @property
    def spec(self) -> ServingSpec:
        """What the server says about the checkpoint; asked once."""
        return self._run(self._flows.spec())

    def embed_images(
        self, images: Iterable[ImageInput], *, batch_size: int | None = None, timeout_s: float | None = None
    ) -> npt.NDArray[np.float32]:
        """Embed images: float32 [N, D], unit length, in the order given.

        Args:
            images: any iterable of paths (str or Path), encoded bytes, PIL images or uint8 arrays
                [H, W, 3] or [H, W]. A list is checked before the first request; files are read as
                they are needed.
            batch_size: images a request, at most; the server's own limit also holds.
            timeout_s: seconds for the whole call.
        """
        return self._run(self._flows.embed_images(images, batch_size, timeout_s))

    def embed_texts(
        self,
        texts: Iterable[TextInput],
        *,
        long_text: LongText = "truncate",
        aggregate: Aggregate = "mean",
        timeout_s: float | None = None,
    ) -> npt.NDArray[np.float32]:
        """Embed texts (str, or UTF-8 bytes): float32 [N, D], unit length, in the order given.

        Args:
            long_text: what becomes of a text longer than the model's context. "truncate" embeds its beginning and
                reports it (a `TruncationWarning`, and `truncated_texts`). "chunk" has the server cut it between
                sentences, else words, else tokens, and embeds every chunk; shorter texts are embedded as ever.
            aggregate: how the chunks of a text become one vector: "mean" or "max" (element-wise), then unit length.
            timeout_s: seconds for the whole call.
        """
        return self._run(self._flows.embed_texts(texts, long_text, aggregate, timeout_s))

    def similarity(
        self, images: Iterable[ImageInput], texts: Iterable[TextInput], *, timeout_s: float | None = None
    ) -> Similarity:
        """Score every image against every text; in one request if the server's limits allow it."""
        return self._run(self._flows.similarity(images, texts, timeout_s))

    def classify(
        self,
        images: Iterable[ImageInput],
        labels: Iterable[str],
        *,
        templates: str | Iterable[str] = "plain",
        top_k: int | None = None,
        timeout_s: float | None = None,
    ) -> list[Classification]:
        """Find the label of each image (zero-shot).

        Args:
            labels: each once.
            templates: a name in `TEMPLATES`, a text with `{}` where the label goes, or several: then a
                label is the mean of its prompts' embeddings.
            top_k: labels a result, best first; None for all.
        """
        return self._run(self._flows.classify(images, labels, templates, top_k, timeout_s))

    def classify_baked(
        self, images: Iterable[ImageInput], name: str, *, timeout_s: float | None = None
    ) -> list[Classification]:
        """The best labels of each image by a classifier in the repository, as many as it was built to answer with.

        Args:
            name: the --name that `tritonclip classifier` was given.

        Raises:
            ServerError: with the status NOT_FOUND, the server has no such classifier.
        """
        return self._run(self._flows.classify_baked(images, name, timeout_s))

    def health(
        self, entry_points: Sequence[str] | None = None, *, deep: bool = True, timeout_s: float | None = None
    ) -> Health:
        """Ask every entry point for a small known answer, side by side.

        Nothing is repeated, but for an overloaded server and for what a malformed request of another caller spoiled.

        Args:
            entry_points: names of models; None for `embed_image`, `embed_text`, `clip`, `split_text` and every
                `classify_NAME` that the server tells of (one that keeps its index to itself tells of none).
            deep: also have a small image and a text worked on; without, only ask whether the models are ready.

        Raises:
            ServerUnavailableError, DeadlineExceededError: the server itself does not answer.
        """
        return self._run(self._flows.health(entry_points, deep, timeout_s))

    def ready(
        self, entry_points: Sequence[str] | None = None, *, deep: bool = True, timeout_s: float | None = None
    ) -> bool:
        """Whether every entry point answers; see `check_ready`."""
        return self._run(self._flows.ready(entry_points, deep, timeout_s))

    def check_ready(
        self, entry_points: Sequence[str] | None = None, *, deep: bool = True, timeout_s: float | None = None
    ) -> None:
        """Raise the first reason why an entry point does not answer, if there is one; see `health`."""
        self._run(self._flows.check_ready(entry_points, deep, timeout_s))

    def infer(
        self,
        model: str,
        inputs: Mapping[str, npt.NDArray[Any]],
        outputs: Sequence[str],
        *,
        timeout_s: float | None = None,
    ) -> dict[str, npt.NDArray[Any]]:
        """Send one request to any model of the server, in this thread; the arrays answered are read-only.

        Args:
            inputs: tensor name to array, batch axis included; BYTES tensors are object arrays of bytes.
            outputs: names of the tensors to answer with.
        """
        return self._run(self._flows.infer(model, inputs, outputs, timeout_s))

    def _run(self, flow: Flow[T]) -> T:
        try:
            step = next(flow)
            while True:
                try:
                    answer = self._perform(step)
                except Exception as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(answer)
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            flow.close()

    def _perform(self, step: Rpc | Pause | Work | Gather) -> Any:
        if isinstance(step, Rpc):
            return self._call(step)
        if isinstance(step, Pause):
            return time.sleep(step.seconds)
        return step.function() if isinstance(step, Work) else self._gather(step)

    def _call(self, rpc: Rpc) -> Any:
        try:
            return self._method(rpc, rpc.method)()
        except InferenceServerException as error:
            raise self._translated(error, rpc) from error

    def _gather(self, step: Gather) -> list[Any]:
        first: list[CallFlow[Any]] = list(islice(step.flows, 2))
        # A single request needs neither callbacks nor a queue, and works under gevent as it is.
        if len(first) == 1:
            return [self._run(first[0])]
        return Gathering(self._begin, step.width).run(chain(first, step.flows))

    def _begin(self, step: Rpc | Pause, report: Report) -> Running:
        if isinstance(step, Pause):
            timer = threading.Timer(step.seconds, report, (None, None))
            timer.daemon = True
            timer.start()
            return timer

        def land(result: Any, error: InferenceServerException | None) -> None:
            report(result, None if error is None else self._translated(error, step))

        running: Running = self._method(step, "async_infer")(callback=land)
        return running

    def _method(self, rpc: Rpc, name: str) -> Callable[..., Any]:
        triton = self._triton
        if triton is None:
            raise ClipError("this client is closed; make a new one")
        return partial(
            getattr(triton, name),
            **rpc.arguments,
            **rpc.timing(),
            headers=self._headers,
        )

    def _translated(self, error: InferenceServerException, rpc: Rpc) -> ClipError:
        return from_triton(error, self._options.address, rpc.deadline.timeout_s)
