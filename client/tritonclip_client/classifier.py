"""Classifiers that were baked into the repository with `tritonclip classifier`: labels from images alone."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from . import wire
from .errors import ProtocolError
from .images import ImageInput, check_images, encode_images
from .items import Chunk, chunked
from .results import Classification, Score
from .session import IMAGE, MAX_REQUEST_BYTES, CallSession
from .steps import CallFlow, Flow, Gather, Work


@dataclass(frozen=True)
class _Classifier:
    """What a classifier's config says.

    Attributes:
        version: of the model that these labels are of.
        limit: images a request.
    """

    version: str
    labels: tuple[str, ...]
    limit: int


class Classifiers:
    """The classifiers that one client has asked; what their configs say is read once for every version."""

    def __init__(self) -> None:
        self._known: dict[str, _Classifier] = {}

    def classify(
        self, session: CallSession, images: Iterable[ImageInput], name: str, *, batch: int, in_flight: int
    ) -> Flow[list[Classification]]:
        """The best labels of each image, by the classifier `name`: `batch` images a request, `in_flight` at a time."""
        model = f"classify_{name}"
        images = yield Work(partial(check_images, images))
        known = self._known.get(model) or (yield from self._read(session, model))
        chunks = chunked(encode_images(images), min(batch, known.limit), MAX_REQUEST_BYTES)
        parts = yield Gather((_ask(session, model, chunk) for chunk in chunks), in_flight)
        if any(wire.version(answer) != known.version for answer, _ in parts):
            # It was built anew since.
            known = yield from self._read(session, model)
        return [best for answer, rows in parts for best in _ranked(answer, known, model, rows)]

    def _read(self, session: CallSession, model: str) -> CallFlow[_Classifier]:
        config = yield from session.rpc("get_model_config", {"model_name": model})
        version, labels = (wire.parameter(config, model, name) for name in ("version", "labels"))
        known = _Classifier(version, _labels(model, labels), wire.batch_limit(config, model))
        self._known[model] = known
        return known


def _ask(session: CallSession, model: str, chunk: Chunk) -> CallFlow[tuple[Any, int]]:
    """The answer for the images of one chunk, and their number."""
    tensors = {IMAGE.tensor: wire.bytes_tensor(chunk.items)}
    with chunk.located(IMAGE.error):
        answer = yield from session.rpc("infer", wire.infer_arguments(model, tensors, wire.CLASSES))
    return answer, len(chunk.items)


def _labels(model: str, text: str) -> tuple[str, ...]:
    try:
        labels = json.loads(text)
    except ValueError as error:
        raise ProtocolError(f"the labels of the model {model!r} are no JSON ({error}); build it again") from error
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ProtocolError(f"the labels of the model {model!r} are no list of texts; build it again")
    return tuple(labels)


def _ranked(answer: Any, known: _Classifier, model: str, rows: int) -> list[Classification]:
    indices = wire.integers(answer, wire.CLASSES[0], rows)
    fits = known.version == wire.version(answer) and ((indices >= 0) & (indices < len(known.labels))).all()
    if not fits or not indices.shape[1]:
        raise ProtocolError(
            f"the model {model!r} answered classes that its {len(known.labels)} labels do not name (version "
            f"{wire.version(answer)} answered, they are of {known.version}); ask again, or build it again"
        )
    scores = (wire.floats(answer, name, *indices.shape) for name in wire.CLASSES[1:])
    return [_best(known.labels, *row) for row in zip(indices, *scores, strict=True)]


def _best(labels: tuple[str, ...], indices: Any, probabilities: Any, logits: Any) -> Classification:
    columns = zip(indices.tolist(), probabilities.tolist(), logits.tolist(), strict=True)
    return Classification(tuple(Score(labels[index], *numbers) for index, *numbers in columns))
