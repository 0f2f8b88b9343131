"""Triton's side of preprocessing: BYTES [B, 1] in, UINT8 pixels [B, …] out; the door of the image tower."""

import json
from typing import Any

import clip_board
import clip_door
import clip_metrics
import clip_preprocess
import clip_request
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Takes requests in that the tower can answer in time, and decodes the pictures of each in threads."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        self.settings = clip_preprocess.settings_from(parameters)
        self.most = int(parameters["max_batch"])
        self.board = clip_board.Board(args["model_name"], args["model_instance_name"])
        behind = clip_board.Backlog(parameters["behind"]).seconds
        limits = clip_door.Limits.of(parameters)
        self.door = clip_door.Door(int(parameters["threads"]), self.board, limits, behind)
        self.spent = clip_preprocess.Spent()
        self.metrics = clip_metrics.Metrics(args, {**clip_preprocess.COUNTS, **clip_door.COUNTS}, self._counts)

    def execute(self, requests: list[Any]) -> list[Any] | None:
        """Answers what is known at once; the door answers the rest."""
        replies = [clip_request.Reply(request) for request in requests]
        for request, reply in zip(requests, replies, strict=True):
            try:
                self._take_in(request, reply)
            except Exception as error:
                reply.send(_failure(error))
        return clip_request.ended(replies)

    def finalize(self) -> None:
        self.door.close()
        self.metrics.close()
        self.board.close()

    def _counts(self) -> dict[str, float]:
        return {**self.spent.counts(), **self.door.counts()}

    def _take_in(self, request: Any, reply: clip_request.Reply) -> None:
        caller, timeout_s = clip_request.asked_by(request)
        pictures = pictures_of(request)
        if not 0 < len(pictures) <= self.most:
            raise clip_preprocess.PictureError(
                f"image has {len(pictures)} rows; 1 to {self.most} are allowed; send several requests, or raise "
                "--max-image-batch of `tritonclip configure`"
            )
        pixels = np.empty((len(pictures), *self.settings.pixel_shape), np.uint8)

        def work(index: int) -> None:
            try:
                pixels[index] = clip_preprocess.preprocess(pictures[index], self.settings, self.spent)
            except clip_preprocess.PictureError as error:
                raise clip_preprocess.PictureError(f"image[{index}]: {error}") from error

        def answer(error: Exception | None) -> None:
            reply.send(_failure(error) if error is not None else _response(pixels))

        sizes = [max(1, len(picture)) for picture in pictures]
        self.door.submit(clip_door.Ticket(sizes, work, answer, caller=caller, timeout_s=timeout_s, size=sum(sizes)))


def pictures_of(request: Any) -> Any:
    """The encoded pictures, an array of bytes [B]."""
    return pb_utils.get_input_tensor_by_name(request, "image").as_numpy().ravel()


def _response(pixels: Any) -> Any:
    return pb_utils.InferenceResponse([pb_utils.Tensor("pixels", pixels)])


def _failure(error: Exception) -> Any:
    return clip_request.failure(error, "preprocessing", invalid=(clip_preprocess.PictureError,))
