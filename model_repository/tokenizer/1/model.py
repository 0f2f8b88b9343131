"""Triton's side of the tokenizer: BYTES [B, 1] in, INT32 ids [B, L] out, one answer or one error a request."""

import json
from pathlib import Path
from typing import Any

import clip_metrics
import clip_tokenize
import triton_python_backend_utils as pb_utils

COUNTS = {
    "tritonclip_tokenizer_texts": "Texts that were tokenized",
    "tritonclip_tokenizer_truncated": "Of them, those that were longer than the context and were cut",
}


class TritonPythonModel:
    """Tokenizes every request of a dynamic batch on its own, so a bad text fails only its own request."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        file = Path(args["model_repository"]) / args["model_version"] / parameters["tokenizer_file"]
        self.tokenizer = clip_tokenize.open_tokenizer(file, clip_tokenize.settings_from(parameters))
        self.counts = dict.fromkeys(COUNTS, 0)
        self.metrics = clip_metrics.Metrics(args, COUNTS, lambda: self.counts)

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def finalize(self) -> None:
        self.metrics.close()

    def _answer(self, request: Any) -> Any:
        try:
            tokens = self.tokenizer.encode(pb_utils.get_input_tensor_by_name(request, "text").as_numpy().ravel())
            self.counts["tritonclip_tokenizer_texts"] += len(tokens.ids)
            self.counts["tritonclip_tokenizer_truncated"] += int(tokens.truncated.sum())
            ids, truncated = pb_utils.Tensor("input_ids", tokens.ids), pb_utils.Tensor("truncated", tokens.truncated)
            return pb_utils.InferenceResponse([ids, truncated])
        except clip_tokenize.TextError as error:
            failure = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
        except Exception as error:
            failure = pb_utils.TritonError(f"the tokenizer failed: {error!r}", pb_utils.TritonError.INTERNAL)
        return pb_utils.InferenceResponse(error=failure)
