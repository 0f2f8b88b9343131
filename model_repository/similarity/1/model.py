"""Scores N image embeddings against M text embeddings as the checkpoint was trained to be scored."""

import json
from typing import Any

import clip_board
import clip_scores
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """`image_embedding` [N, D] and `text_embedding` [M, D] to logits and probabilities [N, M]."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        self.board = clip_board.Board(args["model_name"], args["model_instance_name"])
        self.scoring = clip_scores.Scoring(
            kind=parameters["scoring"]["string_value"],
            logit_scale=float(parameters["logit_scale"]["string_value"]),
            logit_bias=float(parameters["logit_bias"]["string_value"]),
            max_scores=int(parameters["max_scores"]["string_value"]),
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        number = self.board.begin()
        try:
            return [self._answer(request) for request in requests]
        finally:
            self.board.end(number)

    def finalize(self) -> None:
        self.board.close()

    def _answer(self, request: Any) -> Any:
        try:
            return pb_utils.InferenceResponse([pb_utils.Tensor(*item) for item in self._outputs(request).items()])
        except ValueError as error:
            failure = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
        except MemoryError:
            why = "overloaded: no memory is left for the scores; retry in 1.0 s"
            failure = pb_utils.TritonError(why, pb_utils.TritonError.UNAVAILABLE)
        except Exception as error:
            failure = pb_utils.TritonError(f"the scoring failed: {error!r}", pb_utils.TritonError.INTERNAL)
        return pb_utils.InferenceResponse(error=failure)

    def _outputs(self, request: Any) -> dict[str, Any]:
        image = pb_utils.get_input_tensor_by_name(request, "image_embedding").as_numpy()
        text = pb_utils.get_input_tensor_by_name(request, "text_embedding").as_numpy()
        logits, probabilities = self.scoring.score(image, text)
        # The embeddings leave under new names: an ensemble output must not also feed a later step.
        outputs = {
            "logits": logits,
            "probabilities": probabilities,
            "image_features": image,
            "text_features": text,
        }
        return {name: outputs[name] for name in request.requested_output_names()}
