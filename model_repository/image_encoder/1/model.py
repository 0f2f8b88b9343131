"""Runs one tower's ONNX graph in ONNX Runtime: one tensor in, one embedding per item out.

The image encoder and the text encoder share this file; what differs stands in their `config.pbtxt`.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import clip_metrics
import clip_onnx
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Hands every request to the encoder, which answers each as soon as its own rows are done."""

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
        self.metrics = clip_metrics.Metrics(args, clip_onnx.COUNTS, self.encoder.counts)

    def execute(self, requests: list[Any]) -> None:
        """Return at once, so that later requests can join; while the encoder is full, Triton's queue holds them."""
        came = time.monotonic()
        for request in requests:
            sender = request.get_response_sender()
            try:
                array = pb_utils.get_input_tensor_by_name(request, self.input_name).as_numpy()
                if not len(array):
                    raise ValueError(f"{self.input_name} has no rows; give at least one")
                self.encoder.submit(array, self._answer(sender, array), came)
            except Exception as error:  # raised, it would fail the requests that came along
                self._send(sender, self._error(repr(error), pb_utils.TritonError.INTERNAL))

    def finalize(self) -> None:
        self.encoder.close()
        self.metrics.close()

    def _answer(self, sender: Any, array: Any) -> Callable[[Any], None]:
        shape = list(array.shape)

        def answer(result: Any) -> None:
            try:
                response = self._failure(result, shape) if isinstance(result, Exception) else self._response(result)
            except Exception as error:  # such as no shared memory left
                response = self._error(f"the answer failed: {error!r}", pb_utils.TritonError.INTERNAL)
            self._send(sender, response)

        return answer

    def _send(self, sender: Any, response: Any) -> None:
        sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _response(self, embedding: Any) -> Any:
        return pb_utils.InferenceResponse([pb_utils.Tensor(self.output_name, embedding)])

    def _failure(self, error: Exception, shape: list[int]) -> Any:
        if clip_onnx.is_refusal(error):
            message = f"{self.input_name} {shape}: values or a length that the graph does not take; {error}"
            return self._error(message, pb_utils.TritonError.INVALID_ARG)
        return self._error(f"the graph failed: {error!r}", pb_utils.TritonError.INTERNAL)

    def _error(self, message: str, code: int) -> Any:
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
