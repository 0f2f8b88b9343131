"""The CLIP and the inputs of the AdapterHub golden files, from numpy alone: two environments must agree on them."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

# The towers differ in width, so that one taken for the other shows.
TEXT = {"width": 16, "layers": 2, "heads": 2, "context": 12, "vocabulary": 64}
VISION = {"width": 24, "layers": 2, "heads": 3, "image": 16, "patch": 8}
EMBED_DIM = 20


def random_values(name: str, shape: Sequence[int]) -> Array:
    """float32 values that depend on the name and the shape only; scales lie around 1, the rest around 0."""
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape))
    if len(shape) >= 2:
        values = values / np.sqrt(np.prod(shape[1:]))
    elif name.endswith("weight"):
        values = 1 + 0.1 * values
    return values.astype(np.float32)


def random_weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, Array]:
    """Weights for every name of a `CLIPModel` but the scalars, which the features do not depend on."""
    return {name: random_values(name, shape) for name, shape in shapes.items() if len(shape)}


def pixel_values(count: int = 5) -> Array:
    """float32 [count, 3, 16, 16]."""
    return random_values("pictures", (count, 3, 16 * 16)).reshape(count, 3, 16, 16) * 16


def input_ids(count: int = 5) -> npt.NDArray[np.int64]:
    """int64 [count, 12]: words, the end of text (the highest id) at differing places, zeros."""
    ids = np.random.RandomState(0).randint(1, TEXT["vocabulary"] - 1, (count, TEXT["context"]))
    for row in range(count):
        ids[row, 5 + row :] = 0
        ids[row, 5 + row] = TEXT["vocabulary"] - 1
    return ids.astype(np.int64)
