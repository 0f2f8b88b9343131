"""One ONNX graph in ONNX Runtime, fed in slices that stay in the processor's cache."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument

CPU = "CPUExecutionProvider"
# What a graph raises for an input of the right type: an id beyond the vocabulary, a text beyond the context.
REFUSALS = (InvalidArgument, Fail)


class Encoder:
    """A graph with one input `[batch, ...]` and one output `[batch, D]` float32.

    On a CPU as many rows as divide evenly among the cores are cut into slices, one core each: the cores then never
    wait for each other inside the graph, which they would where other processes (decoding, clients) want them too.
    In the rows that are left the cores share every matrix product. It takes the weights' memory twice.

    Args:
        path: the ONNX file.
        threads: cores to use; 0 takes every core the process may use.
        slice_batch: the most rows of one slice. On a CPU larger ones are no faster and spill the caches.
    """

    def __init__(self, path: Path, *, threads: int = 0, slice_batch: int = 8) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; write it with `tritonclip export`")
        self._cores = threads or len(os.sched_getaffinity(0))
        self._slice = slice_batch
        self._shared = _session(path, self._cores)
        # A GPU runs one batch at a time anyway.
        self._sliced = _session(path, 1) if self._cores > 1 and _providers() == [CPU] else None
        self._pool = ThreadPoolExecutor(self._cores)
        self._input = self._shared.get_inputs()[0].name

    def encode(self, batch: np.ndarray) -> np.ndarray:
        """Embed `batch` `[N, ...]`; returns float32 `[N, D]`."""
        even = 0 if self._sliced is None else len(batch) - len(batch) % self._cores
        slices = _cut(batch[:even], self._cores, self._slice)
        parts = list(self._pool.map(partial(self._run, self._sliced), slices))
        parts += [self._run(self._shared, rest) for rest in _cut(batch[even:], 1, self._slice)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _run(self, session: ort.InferenceSession, rows: np.ndarray) -> np.ndarray:
        embeddings: np.ndarray = session.run(None, {self._input: rows})[0]
        return embeddings

    def encode_all(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """Embed several batches at once; those of one item shape run together. Keeps the order."""
        embeddings: list[np.ndarray] = []
        for _, group in groupby(arrays, key=lambda array: array.shape[1:]):
            batches = list(group)
            joined = self.encode(batches[0] if len(batches) == 1 else np.concatenate(batches))
            ends = np.cumsum([len(batch) for batch in batches])[:-1]
            embeddings.extend(np.split(joined, ends))
        return embeddings


def _cut(batch: np.ndarray, lanes: int, most: int) -> list[np.ndarray]:
    """Slices of at most `most` rows, as equal as can be, their number a multiple of `lanes`; none of nothing."""
    rounds = -(-len(batch) // (lanes * most))
    return np.array_split(batch, rounds * lanes) if rounds else []


def _session(path: Path, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning threads would take the cores that decode the next pictures.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(path, options, providers=_providers())


def _providers() -> list[str]:
    wanted = ("CUDAExecutionProvider", CPU)
    return [name for name in wanted if name in ort.get_available_providers()]
