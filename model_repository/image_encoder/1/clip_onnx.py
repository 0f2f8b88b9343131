"""One ONNX graph in ONNX Runtime, fed in slices that stay in the processor's cache."""

from __future__ import annotations

import os
from itertools import groupby
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument

# What a graph raises for an input of the right type: an id beyond the vocabulary, a text beyond the context.
REFUSALS = (InvalidArgument, Fail)


class Encoder:
    """A graph with one input `[batch, ...]` and one output `[batch, D]` float32.

    Args:
        path: the ONNX file.
        intra_op_threads: threads that share one matrix product; 0 takes every core the process may use.
        slice_batch: rows per run of the graph. On a CPU a large batch is no faster than eight rows and
            spills the caches.
    """

    def __init__(self, path: Path, *, intra_op_threads: int = 0, slice_batch: int = 8) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; write it with `tritonclip export`")
        options = ort.SessionOptions()
        options.intra_op_num_threads = intra_op_threads or len(os.sched_getaffinity(0))
        options.inter_op_num_threads = 1
        # Spinning threads would take the cores that decode the next pictures.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(path, options, providers=_providers())
        self._input = self._session.get_inputs()[0].name
        self._slice = slice_batch

    def encode(self, batch: np.ndarray) -> np.ndarray:
        """Embed `batch` `[N, ...]`; returns float32 `[N, D]`."""
        slices = [
            self._session.run(None, {self._input: batch[start : start + self._slice]})[0]
            for start in range(0, len(batch), self._slice)
        ]
        return slices[0] if len(slices) == 1 else np.concatenate(slices)

    def encode_all(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """Embed several batches at once; those of one item shape run together. Keeps the order."""
        embeddings: list[np.ndarray] = []
        for _, group in groupby(arrays, key=lambda array: array.shape[1:]):
            batches = list(group)
            joined = self.encode(batches[0] if len(batches) == 1 else np.concatenate(batches))
            ends = np.cumsum([len(batch) for batch in batches])[:-1]
            embeddings.extend(np.split(joined, ends))
        return embeddings


def _providers() -> list[str]:
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    return [name for name in wanted if name in ort.get_available_providers()]
