"""What the calls return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Similarity:
    """N images against M texts.

    Attributes:
        logits: float32 [N, M], logit scale x cosine + logit bias.
        probabilities: float32 [N, M]; softmax over the texts, or a sigmoid of every pair, as the
            checkpoint was trained.
        image_features: float32 [N, D], unit length.
        text_features: float32 [M, D], unit length.
    """

    logits: Floats
    probabilities: Floats
    image_features: Floats
    text_features: Floats


@dataclass(frozen=True)
class Score:
    """How well one label fits one image."""

    label: str
    probability: float
    logit: float


@dataclass(frozen=True)
class Classification:
    """The answer for one image: its best labels, best first."""

    scores: tuple[Score, ...]

    @property
    def label(self) -> str:
        """The label with the highest probability."""
        return self.scores[0].label

    @property
    def probability(self) -> float:
        """The probability of `label`."""
        return self.scores[0].probability


def rank(labels: list[str], logits: Floats, probabilities: Floats, top_k: int | None) -> list[Classification]:
    """The `top_k` best labels of every row of `logits` and `probabilities`, both float32 [N, len(labels)].

    Ranked by logit: probabilities far from the best one may have rounded to the same number.
    """
    order = np.argsort(-logits, axis=1, kind="stable")[:, :top_k]
    return [
        Classification(tuple(Score(labels[j], float(probabilities[i, j]), float(logits[i, j])) for j in columns))
        for i, columns in enumerate(order)
    ]


def unit(vectors: npt.NDArray[Any]) -> Floats:
    """The rows of `vectors` [N, D] at unit length, float32; a row of zeros stays one."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: Floats = (vectors / np.maximum(norms, np.finfo(np.float32).tiny)).astype(np.float32)
    return scaled
