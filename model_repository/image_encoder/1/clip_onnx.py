"""One ONNX graph in ONNX Runtime, on all cores of a machine or on its GPU."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
from clip_lanes import Answer, Job, Lanes
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument

CPU = "CPUExecutionProvider"
# What a graph raises for an input of the right type: an id beyond the vocabulary, a text beyond the context.
REFUSALS = (InvalidArgument, Fail)
# A GPU runs one batch at a time, the larger the better.
GPU_BATCH = 64


class Encoder:
    """A graph with one input `[batch, ...]` and one output `[batch, D]` float32.

    On a CPU every core runs slices of its own: the cores then never wait for each other inside the graph, which they
    would where other processes (decoding, clients) want them too. Fewer rows than cores run on all of them together.
    It takes the weights' memory twice.

    Args:
        path: the ONNX file.
        threads: cores to use; 0 takes every core the process may use.
        slice_batch: the most rows of one slice. On a CPU larger ones are no faster and spill the caches.
    """

    def __init__(self, path: Path, *, threads: int = 0, slice_batch: int = 4) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; write it with `tritonclip export`")
        cores = threads or len(os.sched_getaffinity(0))
        lanes, most = (cores, slice_batch) if _providers() == [CPU] else (1, GPU_BATCH)
        wide = _runner(path, cores)
        self._lanes = Lanes(_runner(path, 1) if lanes > 1 else wide, wide, lanes, most)

    def submit(self, batch: np.ndarray, answer: Answer) -> None:
        """Embed `batch` [N, ...]; `answer` gets float32 [N, D], or the exception, from another thread."""
        self._lanes.submit(Job(batch, answer))

    def close(self) -> None:
        """Answer what was submitted, then end."""
        self._lanes.close()


def _runner(path: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning threads would take the cores that decode the next pictures.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(path, options, providers=_providers())
    name = session.get_inputs()[0].name

    def run(batch: np.ndarray) -> np.ndarray:
        outputs: np.ndarray = session.run(None, {name: batch})[0]
        return outputs

    return run


def _providers() -> list[str]:
    wanted = ("CUDAExecutionProvider", CPU)
    return [name for name in wanted if name in ort.get_available_providers()]
