"""Runs one tower's ONNX graph in ONNX Runtime: one tensor in, one embedding per item out.

The image encoder and the text encoder share this file; what differs stands in their `config.pbtxt`.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import clip_board
import clip_fair
import clip_jobs
import clip_metrics
import clip_onnx
import clip_request
import triton_python_backend_utils as pb_utils


class InputError(ValueError):
    """An input that the graph does not take."""


class TritonPythonModel:
    """Hands every request to the encoder, which answers each as soon as its own rows are done."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        folder = Path(args["model_repository"]) / args["model_version"]
        self.input_name = config["input"][0]["name"]
        self.output_name = config["output"][0]["name"]
        # Of token ids, what the graph takes; of pixels every value is one.
        self.ids = int(parameters.get("vocab_size", 0))
        self.length = int(parameters.get("context_length", 0))
        self.board = clip_board.Board(args["model_name"], args["model_instance_name"])
        self.encoder = clip_onnx.Encoder(
            folder / parameters["model_file"],
            threads=int(parameters["threads"]),
            slice_batch=int(parameters["slice_batch"]),
            limits=clip_fair.Limits.of(parameters),
            board=self.board,
        )
        self.metrics = clip_metrics.Metrics(args, clip_onnx.COUNTS, self.encoder.counts)

    def execute(self, requests: list[Any]) -> list[Any] | None:
        """Return at once: the encoder holds what waits, and refuses what it could not answer in time."""
        came = time.monotonic()
        replies = [clip_request.Reply(request) for request in requests]
        for request, reply in zip(requests, replies, strict=True):
            try:
                self._take_in(request, reply, came)
            except Exception as error:  # raised, it would fail the requests that came along
                reply.send(clip_request.failure(error, "the encoder", invalid=(InputError,)))
        return clip_request.ended(replies)

    def finalize(self) -> None:
        self.encoder.close()
        self.metrics.close()
        self.board.close()

    def _take_in(self, request: Any, reply: clip_request.Reply, came: float) -> None:
        array = pb_utils.get_input_tensor_by_name(request, self.input_name).as_numpy()
        if fault := self._fault(array):
            raise InputError(f"{self.input_name} {fault}")
        caller, timeout_s = clip_request.asked_by(request)
        answer = self._answer(reply, array)
        self.encoder.submit(clip_jobs.Job(array, answer, caller=caller, timeout_s=timeout_s, came=came))

    def _fault(self, array: Any) -> str | None:
        """What is wrong with an input; what the graph would refuse must not join the rows of other requests."""
        if not array.size:
            return f"{list(array.shape)} has no values; send at least one row"
        if self.length and array.shape[1] > self.length:
            return f"{list(array.shape)} is longer than the context of {self.length}; send at most {self.length} ids"
        if self.ids and (array.min() < 0 or array.max() >= self.ids):
            return (
                f"holds {array.min()} to {array.max()}; ids from 0 to {self.ids - 1} are allowed; use the tokenizer's"
            )
        return None

    def _answer(self, reply: clip_request.Reply, array: Any) -> Callable[[Any], None]:
        shape = list(array.shape)

        def answer(result: Any) -> None:
            try:
                response = self._failure(result, shape) if isinstance(result, Exception) else self._response(result)
            except Exception as error:  # such as no shared memory left
                response = clip_request.failure(error, "the answer")
            reply.send(response)

        return answer

    def _response(self, embedding: Any) -> Any:
        return pb_utils.InferenceResponse([pb_utils.Tensor(self.output_name, embedding)])

    def _failure(self, error: Exception, shape: list[int]) -> Any:
        if clip_onnx.is_refusal(error):
            error = InputError(f"{self.input_name} {shape}: values or a length that the graph does not take; {error}")
        return clip_request.failure(error, "the graph", invalid=(InputError,))
