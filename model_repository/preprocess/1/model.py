"""Triton's side of preprocessing: BYTES [B, 1] in, UINT8 pixels [B, …] out, one answer or one error a request."""

import json
from collections.abc import Mapping
from typing import Any

import clip_metrics
import clip_preprocess
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Decodes every request of a dynamic batch on its own, so a bad picture fails only its own request."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        self.settings = clip_preprocess.settings_from(parameters)
        self.spent = clip_preprocess.Spent()
        self.metrics = clip_metrics.Metrics(args, clip_preprocess.COUNTS, self.spent.counts)

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def finalize(self) -> None:
        self.metrics.close()

    def _answer(self, request: Any, ready: Mapping[int, clip_preprocess.Pixels] | None = None) -> Any:
        try:
            pixels = clip_preprocess.preprocess_batch(pictures_of(request), self.settings, ready, self.spent)
            return pb_utils.InferenceResponse([pb_utils.Tensor("pixels", pixels)])
        except clip_preprocess.PictureError as error:
            failure = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
        except Exception as error:
            failure = pb_utils.TritonError(f"preprocessing failed: {error!r}", pb_utils.TritonError.INTERNAL)
        return pb_utils.InferenceResponse(error=failure)


def pictures_of(request: Any) -> Any:
    """The encoded pictures, an array of bytes [B]."""
    return pb_utils.get_input_tensor_by_name(request, "image").as_numpy().ravel()
