"""Runs one tower's ONNX graph in ONNX Runtime: one tensor in, one embedding per item out.

The image encoder and the text encoder share this file; what differs stands in their `config.pbtxt`.
"""

import json
from pathlib import Path
from typing import Any

import clip_onnx
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Concatenates the requests of a dynamic batch, runs the graph, hands every request its rows."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        folder = Path(args["model_repository"]) / args["model_version"]
        self.input_name = config["input"][0]["name"]
        self.output_name = config["output"][0]["name"]
        self.encoder = clip_onnx.Encoder(
            folder / parameters["model_file"],
            threads=int(parameters["threads"]),
            slice_batch=int(parameters["slice_batch"]),
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        arrays = [pb_utils.get_input_tensor_by_name(r, self.input_name).as_numpy() for r in requests]
        try:
            return [self._response(embedding) for embedding in self.encoder.encode_all(arrays)]
        except Exception:
            # One caller's values may have failed all: each request by itself, so that only that one fails.
            return [self._answer(array) for array in arrays]

    def _answer(self, array: Any) -> Any:
        try:
            return self._response(self.encoder.encode(array))
        except clip_onnx.REFUSALS as error:
            message = f"{self.input_name} {list(array.shape)}: values or a length that the graph does not take; {error}"
            failure = pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG)
        except Exception as error:
            failure = pb_utils.TritonError(f"the graph failed: {error!r}", pb_utils.TritonError.INTERNAL)
        return pb_utils.InferenceResponse(error=failure)

    def _response(self, embedding: Any) -> Any:
        return pb_utils.InferenceResponse([pb_utils.Tensor(self.output_name, embedding)])
