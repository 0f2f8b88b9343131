"""The baseline of a server: the same preparation and the same graph, called in one process."""

from __future__ import annotations

import importlib
import itertools
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import onnxruntime as ort
from google.protobuf import text_format
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2

from tritonclip_bench.errors import BenchError
from tritonclip_bench.traffic.images import Images

BATCH = 8
Item = TypeVar("Item")


class InProcess(Generic[Item]):
    """A preparation and a graph, called without a server.

    Args:
        prepare: items to the graph's one input.
        graph: an ONNX file.
        items: without end.
        batch: items that are embedded together.
    """

    def __init__(
        self, prepare: Callable[[Sequence[Item]], Any], graph: Path, items: Iterator[Item], batch: int = BATCH
    ) -> None:
        self._prepare = prepare
        self._graph = graph
        self._items = items
        self._batch = batch

    def embed(self, items: Sequence[Item]) -> NDArray[np.float32]:
        """The embeddings of `items`, [N, D]."""
        embeddings: NDArray[np.float32] = self._encoder(spinning=False)(self._prepare(items))
        return embeddings

    def sequential(self, *, spinning: bool) -> Iterator[int]:
        """Prepare a batch, then embed it; yields its size each time."""
        embed = self._encoder(spinning=spinning)
        while True:
            embed(self._prepare(self._next_batch()))
            yield self._batch

    def overlapped(self) -> Iterator[int]:
        """Embed a batch while threads prepare the next ones; yields its size each time."""
        # Spinning threads would take the cores that prepare.
        embed = self._encoder(spinning=False)
        cores = len(os.sched_getaffinity(0))
        ready: deque[Future[Any]] = deque()
        with ThreadPoolExecutor(cores) as pool:
            while True:
                while len(ready) <= cores:
                    ready.append(pool.submit(self._prepare, self._next_batch()))
                embed(ready.popleft().result())
                yield self._batch

    def _next_batch(self) -> list[Item]:
        return list(itertools.islice(self._items, self._batch))

    def _encoder(self, *, spinning: bool) -> Callable[[Any], Any]:
        options = ort.SessionOptions()
        options.intra_op_num_threads = len(os.sched_getaffinity(0))
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
        session = ort.InferenceSession(self._graph, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda inputs: session.run(None, {name: inputs})[0]


def image_graph(repository: Path) -> Path:
    """The image tower of what `tritonclip export` wrote."""
    return repository / "image_encoder" / "1" / "model.onnx"


def text_graph(repository: Path) -> Path:
    """The text tower of what `tritonclip export` wrote."""
    return repository / "text_encoder" / "1" / "model.onnx"


def of_images(repository: Path, images: Images, batch: int = BATCH) -> InProcess[bytes]:
    """The repository's own preprocess and image tower, over `images` in turn.

    Raises:
        BenchError: `repository` holds no preprocess model.
    """
    preprocess, parameters = _model(repository / "preprocess", "clip_preprocess")
    settings = preprocess.settings_from(parameters)

    def prepare(encoded: Sequence[bytes]) -> Any:
        return preprocess.preprocess_batch(encoded, settings)

    return InProcess(prepare, image_graph(repository), itertools.cycle(images.encoded), batch)


def of_texts(repository: Path, texts: Iterator[str], batch: int = BATCH) -> InProcess[str]:
    """The repository's own tokenizer and text tower, over `texts`.

    Raises:
        BenchError: `repository` holds no tokenizer model.
    """
    tokenize, parameters = _model(repository / "tokenizer", "clip_tokenize")
    file = repository / "tokenizer" / "1" / parameters["tokenizer_file"]
    tokenizer = tokenize.open_tokenizer(file, tokenize.settings_from(parameters))

    def prepare(some: Sequence[str]) -> Any:
        return tokenizer.encode([text.encode() for text in some]).ids

    return InProcess(prepare, text_graph(repository), texts, batch)


def _model(folder: Path, module: str) -> tuple[Any, dict[str, str]]:
    """A Python model's module, and the parameters of its config.pbtxt."""
    try:
        text = (folder / "config.pbtxt").read_text(encoding="utf-8")
    except OSError as error:
        raise BenchError(f"{folder} is not a model ({error.strerror}); give what `tritonclip export` wrote") from None
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    sys.path.insert(0, str(folder / "1"))
    # A repository holds what its manifest lists, and no caches.
    sys.dont_write_bytecode = True
    return importlib.import_module(module), {name: value.string_value for name, value in config.parameters.items()}
