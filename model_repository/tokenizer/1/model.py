"""Triton's side of the tokenizer: BYTES [B, 1] in, INT32 ids [B, L] out, one answer or one error a request."""

import json
from pathlib import Path
from typing import Any

import clip_tokenize
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Tokenizes every request of a dynamic batch on its own, so a bad text fails only its own request."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        folder = Path(args["model_repository"]) / args["model_version"]
        settings = clip_tokenize.settings_from(parameters)
        self.tokenizer = clip_tokenize.ClipTokenizer(folder / parameters["tokenizer_file"], settings)

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            texts = pb_utils.get_input_tensor_by_name(request, "text").as_numpy().ravel()
            ids = self.tokenizer.encode(texts)
            return pb_utils.InferenceResponse([pb_utils.Tensor("input_ids", ids)])
        except clip_tokenize.TextError as error:
            failure = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
        except Exception as error:
            failure = pb_utils.TritonError(f"the tokenizer failed: {error!r}", pb_utils.TritonError.INTERNAL)
        return pb_utils.InferenceResponse(error=failure)
