"""Class logits of image embeddings: class embeddings or a linear head, and Tip-Adapter's cache on top of either."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from clip_scores import check_rows

Floats = npt.NDArray[np.float32]


class Best(NamedTuple):
    """The best classes of every image, best first: all [N, k]."""

    class_indices: npt.NDArray[np.int32]
    logits: Floats


class Head:
    """What the files of one folder say about an image embedding.

    Args:
        folder: with weights.npy and bias.npy, and the cache's two files where there is one.
        logit_scale: the factor on embedding x weights.
        alpha, beta: the cache's weight and sharpness.
    """

    def __init__(self, folder: Path, logit_scale: float, alpha: float = 0.0, beta: float = 0.0) -> None:
        self._weights: Floats = np.load(folder / "weights.npy")
        self._bias: Floats = np.load(folder / "bias.npy")
        self._scale, self._alpha, self._beta = np.float32(logit_scale), np.float32(alpha), np.float32(beta)
        self._keys: Floats | None = None
        if (folder / "cache_keys.npy").is_file():
            self._keys = np.load(folder / "cache_keys.npy")
            self._values: Floats = np.load(folder / "cache_values.npy")

    def logits(self, embeddings: Floats) -> Floats:
        """Logits [N, C] of unit-length `embeddings` [N, D].

        With a cache: scale * f W + bias + alpha * exp(-beta * (1 - f keys)) values (Tip-Adapter, arXiv:2207.09519).

        Raises:
            ValueError: an embedding that is not finite, or so large that its logits are not.
        """
        check_rows("image_embedding", embeddings, "holds NaN or infinity; send finite numbers")
        with np.errstate(over="ignore", invalid="ignore"):
            logits: Floats = self._scale * (embeddings @ self._weights.T) + self._bias
            if self._keys is not None:
                affinity = np.exp(-self._beta * (1 - embeddings @ self._keys.T))
                logits += self._alpha * (affinity @ self._values)
        check_rows("image_embedding", logits, "is too large for the logits; send an embedding of unit length")
        return logits

    def best(self, logits: Floats, k: int) -> Best:
        """The `k` best classes of `logits` [N, C]; of equal ones the first."""
        indices = np.stack([_best(row, k) for row in logits])
        return Best(indices.astype(np.int32), np.take_along_axis(logits, indices, axis=1))


def _best(row: Floats, k: int) -> npt.NDArray[np.intp]:
    # Only what may be among the best is sorted: a full sort of many classes costs more than their logits.
    worst = np.partition(row, -k)[-k]
    candidates = np.flatnonzero(row >= worst)
    order = np.argsort(-row[candidates], kind="stable")[:k]
    best: npt.NDArray[np.intp] = candidates[order]
    return best
