"""A tiny known question: a server that answers it embeds for real."""

from __future__ import annotations

import secrets
from base64 import b64decode
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from . import wire
from .errors import ProtocolError
from .items import Item

# PNG, 8 x 8 RGB: red grows to the right, green downwards.
PICTURE = b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAGUlEQVR42mNkYPivwnAHE7EwqDBgBYNTAgBChQkZuqvnfQAAAABJRU5ErkJggg=="
)

# float16 towers normalise in float32, so that only rounding is left.
_NORM_TOLERANCE = 1e-3


def probe_tensors(texts: bool = True) -> dict[str, npt.NDArray[np.object_]]:
    """Inputs of the `clip` model that pass through every model of the repository; without `texts`, of `embed_image`."""
    tensors = {"image": wire.bytes_tensor([Item(0, PICTURE)])}
    if texts:
        # Never the same twice: the server would answer from its cache, whatever became of the text tower.
        tensors["text"] = wire.bytes_tensor([Item(0, f"photo {secrets.randbits(32)}".encode())])
    return tensors


def check_probe(features: Mapping[str, npt.NDArray[Any]], width: int) -> None:
    """Raise `ProtocolError` unless each answer is one finite vector of unit length and `width` numbers."""
    for name, vectors in features.items():
        length = float(np.linalg.norm(vectors)) if vectors.shape == (1, width) else float("nan")
        if not abs(length - 1.0) <= _NORM_TOLERANCE:
            raise ProtocolError(
                f"the server answers, but {name} of a known picture or text is no unit vector of {width} numbers "
                f"(shape {list(vectors.shape)}, length {length:g}); run `tritonclip check` on its repository, and "
                "restart it"
            )
