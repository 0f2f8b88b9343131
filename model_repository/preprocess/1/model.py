"""Triton's side of preprocessing: BYTES [N, 1] in, UINT8 pixels [N, …] out; the door of the image tower."""

import json
import time
from functools import partial
from typing import Any

import clip_board
import clip_metrics
import clip_pool
import clip_request
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Takes requests in that can be answered in time; the pool answers each when its images are done."""

    pool_type = clip_pool.Pool

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        self.most = int(parameters["max_batch"])
        self.board = clip_board.Board(args["model_name"], args["model_instance_name"])
        self.pool = self.pool_type(parameters, self.board, clip_board.Backlog(parameters["behind"]).seconds)
        self.metrics = clip_metrics.Metrics(args, clip_pool.COUNTS, self.pool.counts)

    def execute(self, requests: list[Any]) -> list[Any] | None:
        """Answers what is known at once; the pool answers the rest."""
        came = time.monotonic()
        replies = [clip_request.Reply(request) for request in requests]
        for request, reply in zip(requests, replies, strict=True):
            answer = partial(_answer, reply)
            try:
                self._take_in(request, answer, came)
            except Exception as error:  # raised, it would fail the requests that came along
                answer(error)
        return clip_request.ended(replies)

    def finalize(self) -> None:
        self.pool.close()
        self.metrics.close()
        self.board.close()

    def _take_in(self, request: Any, answer: clip_pool.Answer, came: float) -> None:
        caller, timeout_s = clip_request.asked_by(request)
        # Before its images are copied.
        if refusal := self.pool.refusal(caller, timeout_s):
            raise refusal
        self.pool.submit(clip_pool.Images(images_of(request, self.most), caller, timeout_s, came), answer)


def images_of(request: Any, most: int) -> list[bytes]:
    """The encoded images of a request.

    Raises:
        ImageError: they are malformed, none, or more than `most`.
    """
    try:
        images: list[bytes] = pb_utils.get_input_tensor_by_name(request, "image").as_numpy().ravel().tolist()
    except Exception as error:
        raise clip_pool.ImageError(f"image is no tensor of encoded images ({error}); send BYTES [N, 1]") from error
    if not 0 < len(images) <= most:
        raise clip_pool.ImageError(
            f"{len(images)} images in one request; 1 to {most} are allowed; send several requests, or raise "
            "--max-image-batch of `tritonclip configure`"
        )
    return images


def _answer(reply: clip_request.Reply, result: Any) -> None:
    """Send the pixels, or what went wrong."""
    try:
        response = _failure(result) if isinstance(result, Exception) else _pixels(result)
    except Exception as error:  # such as no shared memory left
        response = _failure(error)
    reply.send(response)


def _pixels(pixels: Any) -> Any:
    return pb_utils.InferenceResponse([pb_utils.Tensor("pixels", pixels)])


def _failure(error: Exception) -> Any:
    return clip_request.failure(error, "preprocessing", invalid=(clip_pool.ImageError,))
