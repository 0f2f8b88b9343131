"""The requests that one call of the client makes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from . import wire
from .errors import InvalidImageError, InvalidItemError, InvalidTextError
from .items import Chunk, Item, chunked
from .options import Options
from .patience import Patience
from .results import Floats, Similarity
from .retry import Deadline, call
from .spec import ServingSpec
from .steps import CallFlow, Flow, Gather, Rpc

SPLIT = "split_text"
# Far below gRPC's 2 GiB, so that what is in flight stays small and proxies with lower limits cope.
MAX_REQUEST_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Tower:
    """An entry point that embeds one kind of item, and may say which it cut."""

    model: str
    tensor: str
    error: type[InvalidItemError]
    cuts: bool


IMAGE = Tower("embed_image", "image", InvalidImageError, cuts=False)
TEXT = Tower("embed_text", "text", InvalidTextError, cuts=True)


@dataclass(frozen=True)
class Served:
    """What the server says about itself."""

    spec: ServingSpec
    image_limit: int
    text_limit: int


class CallSession:
    """The requests of one call; they share its deadline and the client's patience.

    Attributes:
        truncated: how many texts the server has cut so far.
    """

    def __init__(self, options: Options, deadline: Deadline, patience: Patience) -> None:
        self.truncated = 0
        self._width = options.max_in_flight
        self._deadline = deadline
        self._patience = patience

    def rpc(self, method: str, arguments: Mapping[str, Any]) -> CallFlow[Any]:
        """One call of a method of tritonclient's client, repeated as patience says."""
        return call(Rpc(method, arguments, self._deadline, wire.size(arguments)), self._patience)

    def served(self) -> CallFlow[Served]:
        """Ask the server about itself."""
        image = yield from self.rpc("get_model_config", {"model_name": IMAGE.model})
        text = yield from self.rpc("get_model_config", {"model_name": TEXT.model})
        wire.require_output(text, TEXT.model, wire.TRUNCATED)
        return Served(
            spec=wire.serving_spec(image, IMAGE.model),
            image_limit=wire.batch_limit(image, IMAGE.model),
            text_limit=wire.batch_limit(text, TEXT.model),
        )

    def embed(self, tower: Tower, chunks: Iterable[Chunk], width: int) -> Flow[Floats]:
        """Embed all chunks, side by side: float32 [items, width]."""
        parts = yield Gather((self.embed_chunk(tower, chunk, width) for chunk in chunks), self._width)
        return np.concatenate(parts)

    def embed_chunk(self, tower: Tower, chunk: Chunk, width: int) -> CallFlow[Floats]:
        """Embed one chunk: float32 [items, width]."""
        tensors = {tower.tensor: wire.bytes_tensor(chunk.items)}
        outputs = ["embedding", wire.TRUNCATED] if tower.cuts else ["embedding"]
        with chunk.located(tower.error):
            answer = yield from self.rpc("infer", wire.infer_arguments(tower.model, tensors, outputs))
        if tower.cuts:
            self.truncated += wire.count_truncated(answer, len(chunk.items))
        return wire.floats(answer, "embedding", len(chunk.items), width)

    def split(self, items: Iterable[Item]) -> Flow[list[Item]]:
        """Cut texts into pieces that fit the model's context; an item's index is its text's."""
        config = yield from self.rpc("get_model_config", {"model_name": SPLIT})
        rows, size = (int(wire.parameter(config, SPLIT, name)) for name in ("max_batch", "max_request_bytes"))
        chunks = chunked(items, rows, min(size, MAX_REQUEST_BYTES))
        parts = yield Gather((self.split_chunk(chunk) for chunk in chunks), self._width)
        return list(chain.from_iterable(parts))

    def split_chunk(self, chunk: Chunk) -> CallFlow[list[Item]]:
        """Cut the texts of one chunk."""
        arguments = wire.infer_arguments(SPLIT, {"texts": wire.bytes_tensor(chunk.items)[:, 0]}, wire.PIECES)
        with chunk.located(TEXT.error):
            answer = yield from self.rpc("infer", arguments)
        return wire.pieces(answer, chunk.items)

    def clip(self, images: Chunk, texts: Chunk, width: int) -> CallFlow[Similarity]:
        """Embed and score one chunk of each in a single request."""
        tensors = {IMAGE.tensor: wire.bytes_tensor(images.items), TEXT.tensor: wire.bytes_tensor(texts.items)}
        arguments = wire.infer_arguments("clip", tensors, (*wire.SCORES, *wire.FEATURES, wire.TRUNCATED))
        with images.located(IMAGE.error), texts.located(TEXT.error):
            answer = yield from self.rpc("infer", arguments)
        self.truncated += wire.count_truncated(answer, len(texts.items))
        return wire.similarity(answer, len(images.items), len(texts.items), width)

    def score(self, images: Floats, texts: Floats) -> Flow[Similarity]:
        """Score `images` [N, D] against `texts` [M, D], in as many requests as the size of N x M asks for.

        A softmax is over the texts, so that a request may hold a part of the images, never of the texts.
        """
        row_bytes = images.itemsize * (images.shape[1] + 2 * len(texts))
        rows = max(1, MAX_REQUEST_BYTES // row_bytes)
        parts = (images[start : start + rows] for start in range(0, len(images), rows))
        scores = yield Gather((self._score_part(part, texts) for part in parts), self._width)
        logits, probabilities = (np.concatenate(column) for column in zip(*scores, strict=True))
        return Similarity(logits, probabilities, image_features=images, text_features=texts)

    def _score_part(self, images: Floats, texts: Floats) -> CallFlow[tuple[Floats, ...]]:
        tensors = {"image_embedding": images, "text_embedding": texts}
        answer = yield from self.rpc("infer", wire.infer_arguments("similarity", tensors, wire.SCORES))
        return tuple(wire.floats(answer, name, len(images), len(texts)) for name in wire.SCORES)
