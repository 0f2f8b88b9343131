"""The model preprocess where DALI decodes: sends it what it decodes as we do, and does everything else itself.

DALI fails a whole batch for one bad image. Whatever it fails on is done again here, one by one, so that only the
request with the bad image fails, with the same words as without DALI.
"""

import threading
from collections.abc import Mapping
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any

import clip_dali
import clip_pool
import model
import triton_python_backend_utils as pb_utils

DALI_MODEL = "preprocess_dali"
# How long the first image of a call waits for the next one.
PATIENCE_S = 0.001


class Gather:
    """Makes one call of the images that wait, while the call before it is under way.

    Args:
        most: images in a call.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: SimpleQueue[tuple[clip_dali.Job, Future[clip_dali.Pixels]]] = SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def pixels(self, job: clip_dali.Job) -> clip_dali.Pixels:
        """What DALI makes of an image; raises what it raises."""
        result: Future[clip_dali.Pixels] = Future()
        self._waiting.put((job, result))
        return clip_dali.upright(result.result(), job)

    def _work(self) -> None:
        while True:
            together = [self._waiting.get()]
            while len(together) < self._most:
                try:
                    together.append(self._waiting.get(timeout=PATIENCE_S))
                except Empty:
                    break
            jobs = {(0, index): job for index, (job, _) in enumerate(together)}
            for places in clip_dali.parts(jobs):
                _answer([jobs[place] for place in places], [together[index][1] for _, index in places])


class DaliPool(clip_pool.Pool):
    """Has DALI decode the small images that it decodes as we do, a batch at a time."""

    def __init__(self, parameters: Mapping[str, str], *rest: Any) -> None:
        self._gather = Gather(int(parameters["max_batch"]))
        self._cores = threading.BoundedSemaphore(int(parameters["threads"]))
        super().__init__(parameters, *rest)

    def workers(self, parameters: Mapping[str, str]) -> int:
        # Those of a whole call wait for it, while others decode here.
        return super().workers(parameters) + int(parameters["max_batch"])

    def decode(self, encoded: bytes, seconds: float) -> clip_dali.Pixels:
        job = clip_dali.job_for(encoded, self.settings)
        if job is not None:
            try:
                return self._gather.pixels(job)
            except Exception:  # the log says why, once for all of a call
                pass
        with self._cores:
            return super().decode(encoded, seconds)


class TritonPythonModel(model.TritonPythonModel):
    """As without DALI, but for who decodes."""

    pool_type = DaliPool


def _answer(jobs: list[clip_dali.Job], results: list[Future[clip_dali.Pixels]]) -> None:
    try:
        made = _ask(jobs)
    except Exception as error:
        pb_utils.Logger.log_warn(f"{DALI_MODEL} failed, and its images are decoded on the CPU: {error}")
        for result in results:
            result.set_exception(error)
    else:
        for result, pixels in zip(results, made, strict=True):
            result.set_result(pixels)


def _ask(jobs: list[clip_dali.Job]) -> clip_dali.Pixels:
    files, steps = clip_dali.pack(jobs)
    response = pb_utils.InferenceRequest(
        model_name=DALI_MODEL,
        requested_output_names=["pixels"],
        inputs=[pb_utils.Tensor("encoded", files), pb_utils.Tensor("steps", steps)],
        preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
    ).exec()
    if response.has_error():
        raise RuntimeError(response.error().message())
    # The memory is the response's, which ends here.
    pixels: clip_dali.Pixels = pb_utils.get_output_tensor_by_name(response, "pixels").as_numpy().copy()
    return pixels
