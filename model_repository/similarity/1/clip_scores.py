"""Logits and probabilities of a CLIP (softmax over the texts) or a SigLIP (sigmoid of every pair)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Values in the embeddings of a request for each score that it may ask for.
VALUES_PER_SCORE = 8


@dataclass(frozen=True)
class Scoring:
    """How one checkpoint turns cosines into probabilities.

    Args:
        kind: "softmax" over the texts of a request (CLIP, arXiv:2103.00020), or "sigmoid" of every
            image-text pair by itself (SigLIP, arXiv:2303.15343).
        logit_scale: the factor on the cosine, already exponentiated.
        logit_bias: added to the logit; 0 for CLIP.
        max_scores: images x texts that one call may score.
    """

    kind: str
    logit_scale: float
    logit_bias: float
    max_scores: int = 1 << 22

    def __post_init__(self) -> None:
        if self.kind not in _PROBABILITIES:
            raise ValueError(f"scoring is {self.kind!r}; allowed: {', '.join(_PROBABILITIES)}")

    def score(self, image: np.ndarray, text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Score `image` `[N, D]` against `text` `[M, D]`, both L2-normalised float32.

        Returns:
            logits and probabilities, each float32 `[N, M]`.

        Raises:
            ValueError: nothing to score, or too much; embeddings of two widths, or that are not finite or too large.
        """
        self._check(image, text)
        with np.errstate(over="ignore", invalid="ignore"):
            logits = (image @ text.T) * np.float32(self.logit_scale) + np.float32(self.logit_bias)
        check_rows("image_embedding", logits, "gives logits too large for float32; send embeddings of unit length")
        return logits, self.probabilities(logits)

    def _check(self, image: np.ndarray, text: np.ndarray) -> None:
        if not len(image) or not len(text):
            raise ValueError(f"{len(image)} images and {len(text)} texts given; send at least one of each")
        if image.shape[1] != text.shape[1]:
            raise ValueError(
                f"image embeddings have {image.shape[1]} values, text embeddings {text.shape[1]}; "
                "both must come from this model"
            )
        scores, values = len(image) * len(text), image.size + text.size
        if scores > self.max_scores or values > VALUES_PER_SCORE * self.max_scores:
            raise ValueError(
                f"{len(image)} images x {len(text)} texts of {image.shape[1]} values; at most {self.max_scores} scores "
                f"and {VALUES_PER_SCORE * self.max_scores} values are allowed; send several requests, or raise "
                "--max-scores of `tritonclip configure`"
            )
        for name, rows in (("image_embedding", image), ("text_embedding", text)):
            check_rows(name, rows, "holds NaN or infinity; send finite numbers")

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """The probabilities of `logits` float32 `[N, M]`."""
        with np.errstate(over="ignore", under="ignore"):
            return _PROBABILITIES[self.kind](logits)


def check_rows(name: str, rows: np.ndarray, problem: str) -> None:
    """Raise `ValueError` that names the first row of `rows` `[N, K]` that is not finite, and its problem."""
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if bad.size:
        raise ValueError(f"{name}[{bad[0]}]: {problem}")


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    # exp of a non-positive number only, so that large logits do not overflow.
    exponentials = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1 / (1 + exponentials), exponentials / (1 + exponentials))


_PROBABILITIES = {"softmax": _softmax, "sigmoid": _sigmoid}
