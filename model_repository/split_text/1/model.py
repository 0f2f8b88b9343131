"""Triton's side of the splitter: BYTES [N] in; all chunks' bytes, the length of each and its text's index out."""

import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import clip_board
import clip_door
import clip_metrics
import clip_request
import clip_split
import clip_text
import numpy as np
import triton_python_backend_utils as pb_utils

# Threads. A long text keeps one of them busy for a while, the other takes what is short.
WORKERS = 2
# What a text costs beside its bytes, in bytes.
TEXT_COST = 200


class TritonPythonModel:
    """Splits every text on its own, fairly between callers.

    Many servers are never asked, so a large vocabulary is read when one is.
    """

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self.parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        self.folder = Path(args["model_repository"]) / args["model_version"]
        self.settings = clip_text.settings_from(self.parameters)
        self.most, self.most_bytes = (int(self.parameters[name]) for name in ("max_batch", "max_request_bytes"))
        self.board = clip_board.Board(args["model_name"], args["model_instance_name"])
        self.door = clip_door.Door(WORKERS, self.board, clip_door.Limits.of(self.parameters))
        self.metrics = clip_metrics.Metrics(args, clip_door.COUNTS, self.door.counts)

    @cached_property
    def splitter(self) -> clip_split.Splitter:
        return clip_split.Splitter(self.folder / self.parameters["tokenizer_file"], self.settings)

    def execute(self, requests: list[Any]) -> list[Any] | None:
        """Answers what is refused at once; the door answers the rest."""
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

    def _take_in(self, request: Any, reply: clip_request.Reply) -> None:
        texts = _texts(request)
        sizes = [len(text) for text in texts]
        self._check(sizes)
        split, (caller, timeout_s) = self.splitter.split_one, clip_request.asked_by(request)
        chunks: list[list[bytes]] = [[] for _ in texts]

        def work(index: int) -> None:
            chunks[index] = split(index, texts[index])

        ticket = clip_door.Ticket(
            [size + TEXT_COST for size in sizes],
            work,
            _answer(reply, chunks),
            caller=caller,
            timeout_s=timeout_s,
            size=sum(sizes),
        )
        self.door.submit(ticket)

    def _check(self, sizes: list[int]) -> None:
        if not 0 < len(sizes) <= self.most:
            raise clip_text.TextError(
                f"texts has {len(sizes)} rows; 1 to {self.most} are allowed; send several requests, or raise "
                "--max-split-rows of `tritonclip configure`"
            )
        # Before the sum: of a text that is too long alone, its place is what helps.
        for index, size in enumerate(sizes):
            clip_text.check_size(index, size, self.settings.max_bytes)
        if sum(sizes) > self.most_bytes:
            raise clip_text.TextError(
                f"texts have {sum(sizes)} bytes together; at most {self.most_bytes} are allowed; send several "
                "requests, or raise --max-split-bytes of `tritonclip configure`"
            )


def _texts(request: Any) -> Any:
    try:
        return pb_utils.get_input_tensor_by_name(request, "texts").as_numpy().ravel()
    except Exception as error:
        raise clip_text.TextError(f"texts cannot be read ({error}); send a BYTES tensor, UTF-8 in each row") from error


def _answer(reply: clip_request.Reply, chunks: list[list[bytes]]) -> Callable[[Exception | None], None]:
    """What answers a request, once every text's chunks stand in `chunks`."""

    def answer(error: Exception | None) -> None:
        reply.send(_failure(error) if error is not None else _response(chunks))

    return answer


def _response(chunks: list[list[bytes]]) -> Any:
    flat = [chunk for own in chunks for chunk in own]
    # No BYTES: Triton 2.51 ends when it is asked for the classes of a BYTES output.
    outputs = {
        "chunks": np.frombuffer(b"".join(flat), np.uint8),
        "lengths": np.array([len(chunk) for chunk in flat], np.int32),
        "owner": np.repeat(np.arange(len(chunks), dtype=np.int32), [len(own) for own in chunks]),
    }
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs.items()])


def _failure(error: Exception) -> Any:
    return clip_request.failure(error, "the splitter", invalid=(clip_text.TextError,))
