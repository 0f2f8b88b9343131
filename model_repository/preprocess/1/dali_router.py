"""The model preprocess where DALI decodes: sends it what it decodes as we do, and does everything else itself.

DALI fails a whole batch for one bad picture. Whatever it fails on is done again here, one by one, so that only the
request with the bad picture fails, with the same words as without DALI.
"""

from collections.abc import Mapping
from typing import Any

import clip_dali
import model
import triton_python_backend_utils as pb_utils

DALI_MODEL = "preprocess_dali"


class TritonPythonModel(model.TritonPythonModel):
    """One call to DALI for all the pictures of a dynamic batch."""

    def execute(self, requests: list[Any]) -> list[Any]:
        try:
            ready = self._decoded(requests)
        except Exception as error:
            pb_utils.Logger.log_warn(f"{DALI_MODEL} failed, and its pictures are decoded on the CPU: {error}")
            ready = [{}] * len(requests)
        return [self._answer(request, pixels) for request, pixels in zip(requests, ready, strict=True)]

    def _decoded(self, requests: list[Any]) -> list[Mapping[int, clip_dali.Pixels]]:
        """For each request the pixels that DALI made, by the index of their picture."""
        jobs = {
            (number, index): job
            for number, request in enumerate(requests)
            for index, encoded in enumerate(model.pictures_of(request))
            if (job := clip_dali.job_for(encoded, self.settings)) is not None
        }
        ready: list[dict[int, clip_dali.Pixels]] = [{} for _ in requests]
        if jobs:
            for ((number, index), job), pixels in zip(jobs.items(), _ask(list(jobs.values())), strict=True):
                ready[number][index] = clip_dali.upright(pixels, job)
        return ready


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
