"""The baseline of a server: the same preprocess and the same graph, called in one process."""

from __future__ import annotations

import importlib
import itertools
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import onnxruntime as ort
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from tritonclip_bench.errors import BenchError
from tritonclip_bench.pictures import Pictures

BATCH = 8


class InProcess:
    """The repository's preprocess and image encoder, called without a server.

    Args:
        repository: what `tritonclip export` wrote.
        pictures: embedded in turn.

    Raises:
        BenchError: `repository` holds no preprocess model.
    """

    def __init__(self, repository: Path, pictures: Pictures) -> None:
        parameters = _parameters(repository / "preprocess")
        sys.path.insert(0, str(repository / "preprocess" / "1"))
        self._preprocess: Any = importlib.import_module("clip_preprocess")
        self._settings = self._preprocess.settings_from(parameters)
        self._graph = repository / "image_encoder" / "1" / "model.onnx"
        self._pictures = itertools.cycle(pictures.encoded)

    def sequential(self, *, spinning: bool) -> Iterator[int]:
        """Prepare eight, then embed them; yields 8 each time."""
        embed = self._encoder(spinning=spinning)
        while True:
            embed(self._prepare(self._next_batch()))
            yield BATCH

    def overlapped(self) -> Iterator[int]:
        """Embed eight while threads prepare the next ones; yields 8 each time."""
        # Spinning threads would take the cores that prepare.
        embed = self._encoder(spinning=False)
        cores = len(os.sched_getaffinity(0))
        ready: deque[Future[Any]] = deque()
        with ThreadPoolExecutor(cores) as pool:
            while True:
                while len(ready) <= cores:
                    ready.append(pool.submit(self._prepare, self._next_batch()))
                embed(ready.popleft().result())
                yield BATCH

    def _next_batch(self) -> list[bytes]:
        return list(itertools.islice(self._pictures, BATCH))

    def _prepare(self, pictures: Sequence[bytes]) -> Any:
        return self._preprocess.preprocess_batch(pictures, self._settings)

    def _encoder(self, *, spinning: bool) -> Callable[[Any], Any]:
        options = ort.SessionOptions()
        options.intra_op_num_threads = len(os.sched_getaffinity(0))
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
        session = ort.InferenceSession(self._graph, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda pixels: session.run(None, {name: pixels})


def _parameters(model: Path) -> dict[str, str]:
    """The parameters of a model's config.pbtxt."""
    try:
        text = (model / "config.pbtxt").read_text(encoding="utf-8")
    except OSError as error:
        raise BenchError(f"{model} is not a model ({error.strerror}); give what `tritonclip export` wrote") from None
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    return {name: value.string_value for name, value in config.parameters.items()}
