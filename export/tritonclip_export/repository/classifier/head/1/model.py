"""Triton's side of a baked classifier: FP32 embeddings [B, D] in, the best classes [B, k] out."""

import json
from pathlib import Path
from typing import Any

import clip_head
import clip_scores
import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]


class TritonPythonModel:
    """Answers every request on its own."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        folder = Path(args["model_repository"]) / args["model_version"]
        scale, alpha, beta = (float(parameters[name]) for name in ("logit_scale", "alpha", "beta"))
        self.head = clip_head.Head(folder, scale, alpha, beta)
        self.scoring = clip_scores.Scoring(parameters["scoring"], scale, 0.0)
        self.count = int(config["output"][0]["dims"][0])

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            return pb_utils.InferenceResponse([pb_utils.Tensor(*item) for item in self._outputs(request).items()])
        except ValueError as error:
            failure = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
        except MemoryError:
            why = "overloaded: no memory is left for the logits; retry in 1.0 s"
            failure = pb_utils.TritonError(why, pb_utils.TritonError.UNAVAILABLE)
        except Exception as error:
            failure = pb_utils.TritonError(f"the classifier failed: {error!r}", pb_utils.TritonError.INTERNAL)
        return pb_utils.InferenceResponse(error=failure)

    def _outputs(self, request: Any) -> dict[str, Any]:
        embeddings = pb_utils.get_input_tensor_by_name(request, "image_embedding").as_numpy()
        logits = self.head.logits(embeddings)
        best = self.head.best(logits, self.count)
        probabilities = np.take_along_axis(self.scoring.probabilities(logits), best.class_indices, axis=1)
        return {**best._asdict(), "probabilities": probabilities}
