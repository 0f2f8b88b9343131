"""A classifier as arrays, before it becomes files: what every way of making one ends in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tritonclip_export.errors import ClassifierError
from tritonclip_export.spec import ScoringSpec

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Cache:
    """Tip-Adapter's few-shot cache: `keys` [N, D] are image embeddings, `values` [N, C] their classes."""

    keys: Floats
    values: Floats
    alpha: float
    beta: float


@dataclass(frozen=True)
class ClassifierHead:
    """Logits of an image embedding f: `scoring.logit_scale` * weights f + bias, and the cache's.

    Attributes:
        labels: one a class.
        weights: float32 [C, D].
        bias: float32 [C].
        scoring: how logits become probabilities; its own bias is in `bias`.
        method: how the weights were made, for the manifest.
        record: what else of that is worth keeping there.

    Raises:
        ClassifierError: shapes that do not go together, or values that are not finite.
    """

    labels: Sequence[str]
    weights: Floats
    bias: Floats
    scoring: ScoringSpec
    method: str
    cache: Cache | None = None
    record: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count, width = len(self.labels), self.weights.shape[-1]
        _require("the class matrix", self.weights, (count, width), "one row a label")
        _require("the bias", self.bias, (count,), "one value a label")
        if self.cache:
            shots = len(self.cache.values)
            _require("the cache's values", self.cache.values, (shots, count), "one column a label")
            _require("the cache's keys", self.cache.keys, (shots, width), "an image embedding for every value")

    @classmethod
    def of_embeddings(
        cls, labels: Sequence[str], embeddings: Floats, scoring: ScoringSpec, **others: Any
    ) -> ClassifierHead:
        """A classifier that scores class embeddings, float32 [C, D], as the repository scores texts."""
        bias = np.full(len(labels), scoring.logit_bias, np.float32)
        return cls(labels, embeddings, bias, scoring, **others)

    def arrays(self) -> dict[str, Floats]:
        """The arrays under the names of their files."""
        cache = {"cache_keys": self.cache.keys, "cache_values": self.cache.values} if self.cache else {}
        return {"weights": self.weights, "bias": self.bias, **cache}


def _require(what: str, array: Floats, shape: tuple[int, ...], meaning: str) -> None:
    if array.shape != shape:
        raise ClassifierError(f"{what} has shape {list(array.shape)}, not {list(shape)}: {meaning}")
    if not np.isfinite(array).all():
        raise ClassifierError(f"{what} holds NaN or infinity; give one of a training that went well")
