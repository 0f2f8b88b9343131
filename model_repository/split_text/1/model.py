"""Triton's side of the splitter: BYTES [N] in, BYTES [M] chunks and INT32 [M] owners out, or one error a request."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import clip_split
import clip_text
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Splits every request on its own. Many servers are never asked, so a large vocabulary is read when one is."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self.parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        self.folder = Path(args["model_repository"]) / args["model_version"]

    @cached_property
    def splitter(self) -> clip_split.Splitter:
        file = self.folder / self.parameters["tokenizer_file"]
        return clip_split.Splitter(file, clip_text.settings_from(self.parameters))

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            texts = pb_utils.get_input_tensor_by_name(request, "texts").as_numpy()
            chunks, owner = self.splitter.split(texts)
            outputs = {"chunks": np.array(chunks, dtype=np.object_), "owner": np.array(owner, dtype=np.int32)}
            return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs.items()])
        except clip_text.TextError as error:
            failure = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
        except Exception as error:
            failure = pb_utils.TritonError(f"the splitter failed: {error!r}", pb_utils.TritonError.INTERNAL)
        return pb_utils.InferenceResponse(error=failure)
