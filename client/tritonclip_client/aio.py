"""The asyncio client: the same calls as `client.py`, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from .base import BaseClient
from .errors import ClipError, from_triton
from .health import Health
from .images import ImageInput
from .long_texts import Aggregate, LongText
from .results import Classification, Similarity
from .spec import ServingSpec
from .steps import Flow, Gather, Pause, Rpc, T, Work
from .texts import TextInput


class AsyncClipClient(BaseClient):
    """`ClipClient` for asyncio; arguments and errors are the same. It belongs to one event loop.

    Files are read and pixels encoded in a thread, so that the loop never waits for the disk.
    """

    _triton: InferenceServerClient | None
    _closed: bool

    def _start(self) -> None:
        self._triton, self._closed = None, False

    async def __aenter__(self) -> AsyncClipClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; what is in flight is cancelled."""
        self._closed = True
        triton, self._triton = self._triton, None
        if triton is not None:
            await triton.close()

    async def spec(self) -> ServingSpec:
        """As `ClipClient.spec`."""
        return await self._run(self._flows.spec())

    async def embed_images(
        self, images: Iterable[ImageInput], *, batch_size: int | None = None, timeout_s: float | None = None
    ) -> npt.NDArray[np.float32]:
        """As `ClipClient.embed_images`."""
        return await self._run(self._flows.embed_images(images, batch_size, timeout_s))

    async def embed_texts(
        self,
        texts: Iterable[TextInput],
        *,
        long_text: LongText = "truncate",
        aggregate: Aggregate = "mean",
        timeout_s: float | None = None,
    ) -> npt.NDArray[np.float32]:
        """As `ClipClient.embed_texts`."""
        return await self._run(self._flows.embed_texts(texts, long_text, aggregate, timeout_s))

    async def similarity(
        self, images: Iterable[ImageInput], texts: Iterable[TextInput], *, timeout_s: float | None = None
    ) -> Similarity:
        """As `ClipClient.similarity`."""
        return await self._run(self._flows.similarity(images, texts, timeout_s))

    async def classify(
        self,
        images: Iterable[ImageInput],
        labels: Iterable[str],
        *,
        templates: str | Iterable[str] = "plain",
        top_k: int | None = None,
        timeout_s: float | None = None,
    ) -> list[Classification]:
        """As `ClipClient.classify`."""
        return await self._run(self._flows.classify(images, labels, templates, top_k, timeout_s))

    async def classify_baked(
        self, images: Iterable[ImageInput], name: str, *, timeout_s: float | None = None
    ) -> list[Classification]:
        """As `ClipClient.classify_baked`."""
        return await self._run(self._flows.classify_baked(images, name, timeout_s))

    async def health(
        self, entry_points: Sequence[str] | None = None, *, deep: bool = True, timeout_s: float | None = None
    ) -> Health:
        """As `ClipClient.health`."""
        return await self._run(self._flows.health(entry_points, deep, timeout_s))

    async def ready(
        self, entry_points: Sequence[str] | None = None, *, deep: bool = True, timeout_s: float | None = None
    ) -> bool:
        """As `ClipClient.ready`."""
        return await self._run(self._flows.ready(entry_points, deep, timeout_s))

    async def check_ready(
        self, entry_points: Sequence[str] | None = None, *, deep: bool = True, timeout_s: float | None = None
    ) -> None:
        """As `ClipClient.check_ready`."""
        await self._run(self._flows.check_ready(entry_points, deep, timeout_s))

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, npt.NDArray[Any]],
        outputs: Sequence[str],
        *,
        timeout_s: float | None = None,
    ) -> dict[str, npt.NDArray[Any]]:
        """As `ClipClient.infer`."""
        return await self._run(self._flows.infer(model, inputs, outputs, timeout_s))

    async def _run(self, flow: Flow[T]) -> T:
        try:
            step = next(flow)
            while True:
                try:
                    answer = await self._perform(step)
                except Exception as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(answer)
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            flow.close()

    async def _perform(self, step: Rpc | Pause | Work | Gather) -> Any:
        if isinstance(step, Rpc):
            return await self._call(step)
        if isinstance(step, Pause):
            return await asyncio.sleep(step.seconds)
        return await (asyncio.to_thread(step.function) if isinstance(step, Work) else self._gather(step))

    async def _call(self, rpc: Rpc) -> Any:
        method = getattr(self._client(), rpc.method)
        try:
            return await method(**rpc.arguments, **rpc.timing(), headers=self._headers)
        except InferenceServerException as error:
            raise from_triton(error, self._options.address, rpc.deadline.timeout_s) from error

    def _client(self) -> InferenceServerClient:
        if self._closed:
            raise ClipError("this client is closed; make a new one")
        # Made here, where the event loop runs that it will belong to.
        if self._triton is None:
            self._triton = InferenceServerClient(**self._connection)
        return self._triton

    async def _gather(self, step: Gather) -> list[Any]:
        tasks: list[asyncio.Task[Any]] = []
        running: set[asyncio.Task[Any]] = set()
        try:
            while flow := await asyncio.to_thread(next, step.flows, None):
                tasks.append(asyncio.create_task(self._run(flow)))
                running.add(tasks[-1])
                while len(running) >= step.width:
                    running = await _some_done(running)
            while running:
                running = await _some_done(running)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return [task.result() for task in tasks]


async def _some_done(running: set[asyncio.Task[Any]]) -> set[asyncio.Task[Any]]:
    """Wait until a task ends; return the others, or raise its error."""
    done, others = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
    return others
