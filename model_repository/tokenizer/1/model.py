"""Triton's side of the tokenizer: BYTES [B, 1] in, INT32 ids [B, L] out; the door of the text tower."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import clip_board
import clip_door
import clip_metrics
import clip_request
import clip_tokenize
import triton_python_backend_utils as pb_utils

COUNTS = {
    "tritonclip_tokenizer_texts_total": "Texts that were tokenized",
    "tritonclip_tokenizer_truncated_total": "Of them, those that were longer than the context and were cut",
}
# Texts of so many bytes take less time than handing them to another thread.
HERE_BYTES = 1 << 14
# What a text costs beside its bytes, in bytes.
TEXT_COST = 200


class TritonPythonModel:
    """Takes requests in that the encoder can answer in time, and tokenizes each on its own."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        file = Path(args["model_repository"]) / args["model_version"] / parameters["tokenizer_file"]
        self.tokenizer = clip_tokenize.open_tokenizer(file, clip_tokenize.settings_from(parameters))
        self.most = int(parameters["max_batch"])
        self.board = clip_board.Board(args["model_name"], args["model_instance_name"])
        behind = clip_board.Backlog(parameters["behind"]).seconds
        self.door = clip_door.Door(1, self.board, clip_door.Limits.of(parameters), behind)
        self.counting = threading.Lock()
        self.counts = dict.fromkeys(COUNTS, 0)
        self.metrics = clip_metrics.Metrics(args, {**COUNTS, **clip_door.COUNTS}, self._counts)

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
        return {**self.counts, **self.door.counts()}

    def _take_in(self, request: Any, reply: clip_request.Reply) -> None:
        texts = pb_utils.get_input_tensor_by_name(request, "text").as_numpy().ravel()
        if not 0 < len(texts) <= self.most:
            raise clip_tokenize.TextError(
                f"text has {len(texts)} rows; 1 to {self.most} are allowed; send several requests, or raise "
                "--max-text-batch of `tritonclip configure`"
            )
        caller, timeout_s = clip_request.asked_by(request)
        sizes = [len(text) for text in texts]
        # A request of many long texts is work of many pieces, between which others have their turn.
        portions = clip_tokenize.portions(sizes)
        self.door.submit(
            clip_door.Ticket(
                [sum(sizes[one]) + TEXT_COST * len(sizes[one]) for one in portions],
                *self._work(texts, portions, reply),
                caller=caller,
                timeout_s=timeout_s,
                size=sum(sizes),
            ),
            here=sum(sizes) <= HERE_BYTES,
            # In `clip` the images were embedded before.
            begun=self.board.is_draining and pb_utils.get_input_tensor_by_name(request, "after") is not None,
        )

    def _work(
        self, texts: Any, portions: list[slice], reply: clip_request.Reply
    ) -> tuple[Callable[[int], None], Callable[[Exception | None], None]]:
        """What tokenizes the texts, and what answers."""
        made = [clip_tokenize.Rows([], [])] * len(portions)

        def work(index: int) -> None:
            made[index] = self.tokenizer.rows(texts[portions[index]], portions[index].start)

        def answer(error: Exception | None) -> None:
            reply.send(_failure(error) if error is not None else self._response(self.tokenizer.padded(made)))

        return work, answer

    def _response(self, tokens: clip_tokenize.Tokens) -> Any:
        with self.counting:
            self.counts["tritonclip_tokenizer_texts_total"] += len(tokens.ids)
            self.counts["tritonclip_tokenizer_truncated_total"] += int(tokens.truncated.sum())
        ids, truncated = pb_utils.Tensor("input_ids", tokens.ids), pb_utils.Tensor("truncated", tokens.truncated)
        return pb_utils.InferenceResponse([ids, truncated])


def _failure(error: Exception) -> Any:
    return clip_request.failure(error, "the tokenizer", invalid=(clip_tokenize.TextError,))
