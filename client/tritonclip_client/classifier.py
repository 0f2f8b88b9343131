"""Classifiers that were baked into the repository with `tritonclip classifier`: labels from pictures alone."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from . import wire
from .errors import ProtocolError
from .images import ImageInput, check_images, encode_images
from .items import Chunk, chunked
from .requests import IMAGE, MAX_REQUEST_BYTES, Requests
from .results import Classification, Score
from .steps import CallFlow, Flow, Gather, Work

_SCORES = ("probabilities", "logits")


def classification(
    requests: Requests, images: Iterable[ImageInput], name: str, *, batch: int, in_flight: int
) -> Flow[list[Classification]]:
    """The best labels of each image, by the classifier `name`: `batch` images a request, `in_flight` at a time."""
    model = f"classify_{name}"
    images = yield Work(partial(check_images, images))
    config = yield from requests.rpc("get_model_config", {"model_name": model})
    limit = min(batch, wire.batch_limit(config, model))
    chunks = chunked(encode_images(images), limit, MAX_REQUEST_BYTES)
    parts = yield Gather((_classify_chunk(requests, model, chunk) for chunk in chunks), in_flight)
    return [answer for part in parts for answer in part]


def _classify_chunk(requests: Requests, model: str, chunk: Chunk) -> CallFlow[list[Classification]]:
    tensors = {IMAGE.tensor: wire.bytes_tensor(chunk.items)}
    with chunk.located(IMAGE.error):
        answer = yield from requests.rpc("infer", wire.infer_arguments(model, tensors, ["labels", *_SCORES]))
    labels = wire.output(answer, "labels")
    rows = len(chunk.items)
    if labels.ndim != 2 or len(labels) != rows:
        raise ProtocolError(f"the model {model!r} answered {list(labels.shape)} labels for {rows} images")
    scores = (wire.floats(answer, tensor, rows, labels.shape[1]) for tensor in _SCORES)
    return [_ranked(*row) for row in zip(labels, *scores, strict=True)]


def _ranked(labels: Any, probabilities: Any, logits: Any) -> Classification:
    columns = zip(labels, probabilities.tolist(), logits.tolist(), strict=True)
    return Classification(tuple(Score(label.decode(), *numbers) for label, *numbers in columns))
