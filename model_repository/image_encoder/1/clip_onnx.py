"""One ONNX graph in ONNX Runtime, on all cores of a machine or on its GPU."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
from clip_admission import COUNTS as TURNED_AWAY
from clip_board import Board, say
from clip_fair import Limits
from clip_jobs import Job
from clip_lanes import Lanes
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
CUDA_OPTIONS = {
    # By default float32 is rounded to ten bits of mantissa before every product.
    "use_tf32": "0",
    # The default times every algorithm again for each batch size that it meets, while the requests wait.
    "cudnn_conv_algo_search": "HEURISTIC",
}
# "cpu", "cuda" (which fails where there is none), or "auto": the GPU where ONNX Runtime can use one.
DEVICE = "TRITONCLIP_DEVICE"
DEVICES = ("auto", "cpu", "cuda")
# What a graph raises for an input of the right type: an id beyond the vocabulary, a text beyond the context.
REFUSALS = (InvalidArgument, Fail)
# Of what a GPU raises itself, which is nobody's input.
_GPU_FAULTS = ("CUDA", "CUBLAS", "CUDNN")
# A GPU runs one batch at a time, the larger the better.
GPU_BATCH = 64
# By the name of a counter of `Encoder.counts`, what it counts.
COUNTS = {
    "tritonclip_encoder_requests_total": "Requests that the encoder answered",
    "tritonclip_encoder_items_total": "Images or texts that ran",
    "tritonclip_encoder_batches_total": "Batches that they ran in",
    "tritonclip_encoder_queue_seconds_total": "Seconds that the answered requests waited inside the encoder",
    "tritonclip_encoder_compute_seconds_total": "Seconds from when a request's first item was taken to its answer",
    **TURNED_AWAY,
}


class Encoder:
    """A graph with one input `[batch, ...]` and one output `[batch, D]` float32.

    On a CPU every core runs slices of its own: the cores then never wait for each other inside the graph, which they
    would where other processes (decoding, clients) want them too. Fewer rows than cores run on all of them together.
    It takes the weights' memory twice. A GPU runs one slice at a time, of at most GPU_BATCH rows.

    Args:
        path: the ONNX file.
        threads: cores to use; 0 takes every core the process may use.
        slice_batch: the most rows of one slice. On a CPU larger ones are no faster and spill the caches.
        limits: what bounds the requests that wait; default: as `Limits` has it.
        board: of this process; default: one that nobody reads.

    Raises:
        FileNotFoundError: there is no `path`.
        ValueError, RuntimeError: see `open_session`.
    """

    def __init__(
        self,
        path: Path,
        *,
        threads: int = 0,
        slice_batch: int = 4,
        limits: Limits | None = None,
        board: Board | None = None,
    ) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; write it with `tritonclip export`")
        cores = threads or len(os.sched_getaffinity(0))
        session = open_session(path, cores, os.environ.get(DEVICE) or "auto")
        provider = session.get_providers()[0]
        say(f"{path} runs on {provider}")
        lanes, most = (cores, slice_batch) if provider == CPU else (1, GPU_BATCH)
        wide = _runner(session)
        narrow = _runner(open_session(path, 1, "cpu")) if lanes > 1 else wide
        self._lanes = Lanes(narrow, wide, lanes, most, limits, board)

    def submit(self, job: Job) -> None:
        """Embed its rows [N, ...]; it is answered float32 [N, D], or the exception, from another thread or this one."""
        self._lanes.submit(job)

    def counts(self) -> dict[str, float]:
        """What was done so far, by the names in COUNTS."""
        sums = self._lanes.sums()
        numbers = (sums.requests, sums.items, sums.batches, sums.queue_s, sums.compute_s)
        return {**dict(zip(COUNTS, numbers, strict=False)), **self._lanes.turned_away()}

    def close(self) -> None:
        """Answer what was submitted, then end."""
        self._lanes.close()


def open_session(path: Path, threads: int, device: str) -> ort.InferenceSession:
    """The graph on `device`, one of DEVICES; on a CPU with that many threads.

    Raises:
        ValueError: `device` is none of them.
        RuntimeError: it is "cuda", and ONNX Runtime cannot use a GPU here.
    """
    if device not in DEVICES:
        raise ValueError(f"{DEVICE} is {device!r}; allowed: {', '.join(DEVICES)}")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning threads would take the cores that decode the next images.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    has_cuda = CUDA in ort.get_available_providers()
    if device == "cpu" or not has_cuda:
        if device == "cuda":
            raise RuntimeError(f"{DEVICE} is cuda, and this onnxruntime has no CUDA provider: install onnxruntime-gpu")
        return ort.InferenceSession(path, options, providers=[CPU])
    if hasattr(ort, "preload_dlls"):  # from 1.21 on
        # CUDA's libraries that come as Python packages are where the loader does not look.
        ort.preload_dlls()
    session = ort.InferenceSession(path, options, providers=[(CUDA, CUDA_OPTIONS), CPU])
    if CUDA not in session.get_providers():
        _tell_of_fallback(device)
    # Else one failure of a kernel would move the session to the CPU for good.
    session.disable_fallback()
    return session


def is_refusal(error: Exception) -> bool:
    """Whether the graph does not take the input, rather than that the machine failed."""
    return isinstance(error, REFUSALS) and not any(word in str(error).upper() for word in _GPU_FAULTS)


def _tell_of_fallback(device: str) -> None:
    """ONNX Runtime goes on with the CPU by itself, at a fraction of the speed."""
    problem = "ONNX Runtime has a CUDA provider and could not load it (its reason stands above)"
    if device == "cuda":
        raise RuntimeError(f"{DEVICE} is cuda; {problem}: check the driver, CUDA and cuDNN")
    say(f"WARNING: {problem}; the CPU is used. {DEVICE}=cuda refuses this")


def _runner(session: ort.InferenceSession) -> Callable[[np.ndarray], np.ndarray]:
    name = session.get_inputs()[0].name

    def run(batch: np.ndarray) -> np.ndarray:
        outputs: np.ndarray = session.run(None, {name: batch})[0]
        return outputs

    return run
