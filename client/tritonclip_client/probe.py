"""A tiny known question: a server that answers it embeds for real."""

from __future__ import annotations

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
TEXT = b"a photo"

# float16 towers normalise in float32, so that only rounding is left.
_NORM_TOLERANCE = 1e-3


def probe_tensors() -> dict[str, npt.NDArray[np.object_]]:
    """Inputs of the `clip` model that pass through every model of the repository."""
    return {"image": wire.bytes_tensor([Item(0, PICTURE)]), "text": wire.bytes_tensor([Item(0, TEXT)])}


def check_probe(features: Mapping[str, npt.NDArray[Any]]) -> None:
    """Raise `ProtocolError` unless each answer is one finite vector of unit length."""
    for name, vectors in features.items():
        length = float(np.linalg.norm(vectors)) if vectors.ndim == 2 and len(vectors) == 1 else float("nan")
        if not abs(length - 1.0) <= _NORM_TOLERANCE:
            raise ProtocolError(
                f"the server answers, but {name} of a known picture and text is no unit vector (shape "
                f"{list(vectors.shape)}, length {length:g}); run `tritonclip check` on its repository, and restart it"
            )
