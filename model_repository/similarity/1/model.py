"""Scores N image embeddings against M text embeddings as the checkpoint was trained to be scored."""

import json
from typing import Any

import clip_scores
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """`image_embedding` [N, D] and `text_embedding` [M, D] to logits and probabilities [N, M]."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        self.scoring = clip_scores.Scoring(
            kind=parameters["scoring"]["string_value"],
            logit_scale=float(parameters["logit_scale"]["string_value"]),
            logit_bias=float(parameters["logit_bias"]["string_value"]),
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        image = pb_utils.get_input_tensor_by_name(request, "image_embedding").as_numpy()
        text = pb_utils.get_input_tensor_by_name(request, "text_embedding").as_numpy()
        try:
            logits, probabilities = self.scoring.score(image, text)
        except ValueError as error:
            failure = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=failure)
        # The embeddings leave under new names: an ensemble output must not also feed a later step.
        outputs = {
            "logits": logits,
            "probabilities": probabilities,
            "image_features": image,
            "text_features": text,
        }
        return pb_utils.InferenceResponse([pb_utils.Tensor(*item) for item in outputs.items()])
