"""Every call of the client as a flow (see `steps.py`), shared by the blocking and the asyncio client."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from typing import Any

import numpy.typing as npt

from . import wire
from .classifier import Classifiers
from .errors import ClipError, InvalidInputError
from .health import WAITED_FOR, Health, check
from .images import ImageInput, check_images, encode_images
from .items import Item, chunked
from .long_texts import Aggregate, LongText, TruncationWarning, aggregate_chunks, check_long_text
from .options import Options, check_timeout
from .patience import REPEATED, Patience
from .results import Classification, Floats, Similarity, rank, unit
from .retry import Deadline
from .session import IMAGE, MAX_REQUEST_BYTES, TEXT, CallSession, Served
from .spec import ServingSpec
from .steps import Flow, Work
from .templates import fill, resolve_templates
from .texts import TextInput, check_labels, encode_texts

# Smaller than the server's limit: several requests in flight keep decoding and the tower busy at once.
PREFERRED_IMAGES = 8

# From `_report_truncation`: past the flow, `_run` and the client's method.
_CALLER = 5


class ClipFlows:
    """The calls of one client; remembers what the server said about itself, and counts the texts that were cut."""

    def __init__(self, options: Options) -> None:
        self.truncated_texts = 0
        self._options = options
        self._patience = Patience(REPEATED if options.retry else frozenset())
        self._served: Served | None = None
        self._classifiers = Classifiers()
        self._counting = threading.Lock()

    def embed_images(
        self, images: Iterable[ImageInput], batch_size: int | None, timeout_s: float | None
    ) -> Flow[Floats]:
        """float32 [N, D]."""
        session = self._session(timeout_s)
        wanted = _batch_size(batch_size)
        images = yield Work(partial(check_images, images))
        served = yield from self._ask_served(session)
        chunks = chunked(encode_images(images), min(wanted, served.image_limit), MAX_REQUEST_BYTES)
        return (yield from session.embed(IMAGE, chunks, served.spec.embedding_dim))

    def embed_texts(
        self, texts: Iterable[TextInput], long_text: LongText, aggregate: Aggregate, timeout_s: float | None
    ) -> Flow[Floats]:
        """float32 [N, D]."""
        session = self._session(timeout_s)
        check_long_text(long_text, aggregate)
        items = yield Work(partial(encode_texts, texts))
        served = yield from self._ask_served(session)
        if long_text == "chunk":
            items = yield from session.split(items)
        chunks = chunked(items, served.text_limit, MAX_REQUEST_BYTES)
        vectors = yield from session.embed(TEXT, chunks, served.spec.embedding_dim)
        self._report_truncation(session.truncated, len(items))
        if long_text == "chunk":
            return aggregate_chunks(vectors, [item.index for item in items], aggregate)
        return vectors

    def similarity(
        self, images: Iterable[ImageInput], texts: Iterable[TextInput], timeout_s: float | None
    ) -> Flow[Similarity]:
        """N images against M texts."""
        session = self._session(timeout_s)
        items = yield Work(partial(encode_texts, texts))
        images = yield Work(partial(check_images, images))
        scored = yield from self._pair(session, images, items)
        self._report_truncation(session.truncated, len(items))
        return scored

    def classify(
        self,
        images: Iterable[ImageInput],
        labels: Iterable[str],
        templates: str | Iterable[str],
        top_k: int | None,
        timeout_s: float | None,
    ) -> Flow[list[Classification]]:
        """One answer an image."""
        session = self._session(timeout_s)
        if top_k is not None and top_k < 1:
            raise InvalidInputError(f"top_k is {top_k}; give 1 or more, or None for all labels")
        names = check_labels(labels)
        chosen = resolve_templates(templates)
        prompts = _prompts(names, chosen)
        images = yield Work(partial(check_images, images))
        scored = yield from self._pair(session, images, prompts, len(chosen))
        self._report_truncation(session.truncated, len(prompts))
        return rank(names, scored.logits, scored.probabilities, top_k)

    def classify_baked(
        self, images: Iterable[ImageInput], name: str, timeout_s: float | None
    ) -> Flow[list[Classification]]:
        """One answer an image, of a classifier in the repository."""
        session, width = self._session(timeout_s), self._options.max_in_flight
        classify = self._classifiers.classify
        return (yield from classify(session, images, name, batch=PREFERRED_IMAGES, in_flight=width))

    def spec(self) -> Flow[ServingSpec]:
        """The serving spec, asked once."""
        served = yield from self._ask_served(self._session(None))
        return served.spec

    def health(self, names: Sequence[str] | None, deep: bool, timeout_s: float | None) -> Flow[Health]:
        """Ask entry points whether they answer."""
        return (yield from check(self._session(timeout_s, Patience(WAITED_FOR)), self._options, names, deep))

    def check_ready(self, names: Sequence[str] | None, deep: bool, timeout_s: float | None) -> Flow[None]:
        """Return if the entry points answer, or raise the first reason why one does not."""
        health = yield from self.health(names, deep, timeout_s)
        for error in health.errors.values():
            raise error

    def ready(self, names: Sequence[str] | None, deep: bool, timeout_s: float | None) -> Flow[bool]:
        """Whether `check_ready` finds no reason."""
        try:
            yield from self.check_ready(names, deep, timeout_s)
        except InvalidInputError:
            raise
        except ClipError:
            return False
        return True

    def infer(
        self, model: str, inputs: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str], timeout_s: float | None
    ) -> Flow[dict[str, npt.NDArray[Any]]]:
        """One request to one model."""
        arguments = wire.infer_arguments(model, inputs, outputs)
        answer = yield from self._session(timeout_s).rpc("infer", arguments)
        return {name: wire.output(answer, name) for name in outputs}

    def _session(self, timeout_s: float | None, patience: Patience | None = None) -> CallSession:
        seconds = self._options.timeout_s if timeout_s is None else check_timeout(timeout_s)
        return CallSession(self._options, Deadline(seconds), patience or self._patience)

    def _ask_served(self, session: CallSession) -> Flow[Served]:
        if self._served is None:
            self._served = yield from session.served()
        return self._served

    def _report_truncation(self, truncated: int, total: int) -> None:
        """Count and warn; to be called by a flow that a public method runs, for the warning names that one's caller."""
        if truncated and self._served:
            with self._counting:
                self.truncated_texts += truncated
            warning = TruncationWarning(truncated, total, self._served.spec.text.context_length)
            warnings.warn(warning, stacklevel=_CALLER)

    def _pair(
        self, session: CallSession, images: Iterable[ImageInput], texts: Sequence[Item], templates: int = 1
    ) -> Flow[Similarity]:
        """Score every image against every run of `templates` texts: one request if it all fits into one."""
        served = yield from self._ask_served(session)
        width = served.spec.embedding_dim
        image_chunks = chunked(encode_images(images), served.image_limit, MAX_REQUEST_BYTES)
        text_chunks = list(chunked(texts, served.text_limit, MAX_REQUEST_BYTES))
        head = yield Work(partial(_take, image_chunks, 2))
        if templates == len(head) == len(text_chunks) == 1:
            return (yield from session.clip(head[0], text_chunks[0], width))
        text_features = yield from session.embed(TEXT, text_chunks, width)
        image_features = yield from session.embed(IMAGE, chain(head, image_chunks), width)
        return (yield from session.score(image_features, _mean_directions(text_features, templates)))


def _batch_size(batch_size: int | None) -> int:
    if batch_size is None:
        return PREFERRED_IMAGES
    if batch_size < 1:
        raise InvalidInputError(f"batch_size is {batch_size}; give 1 or more (the server's own limit also holds)")
    return batch_size


def _prompts(labels: Sequence[str], templates: Sequence[str]) -> list[Item]:
    """Label by label, every template; an item's index is its label's, because that is what the user gave."""
    texts = [fill(template, label) for label in labels for template in templates]
    return [
        Item(position // len(templates), item.data, item.source) for position, item in enumerate(encode_texts(texts))
    ]


def _mean_directions(features: Floats, run: int) -> Floats:
    """The mean of every `run` unit vectors, unit length again: [M * run, D] to [M, D]."""
    if run == 1:
        return features
    return unit(features.reshape(-1, run, features.shape[1]).mean(axis=1))


def _take(chunks: Iterable[Any], count: int) -> list[Any]:
    return list(islice(chunks, count))
