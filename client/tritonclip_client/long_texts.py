"""Texts longer than the model's context: cut and reported, or embedded in chunks that become one vector again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import numpy as np

from .errors import InvalidInputError
from .results import Floats, unit

LongText: TypeAlias = Literal["truncate", "chunk"]
Aggregate: TypeAlias = Literal["mean", "max"]

_REDUCE: dict[str, np.ufunc] = {"mean": np.add, "max": np.maximum}


class TruncationWarning(UserWarning):
    """Texts were longer than the model's context, and what did not fit was left out of their embeddings.

    Args:
        truncated: how many were cut.
        total: how many were given.
        context_length: tokens that the model reads, start and end included.
    """

    def __init__(self, truncated: int, total: int, context_length: int) -> None:
        were = "was" if truncated == 1 else "were"
        super().__init__(f"{truncated} of {total} texts {were} longer than {context_length} tokens and {were} cut")
        self.truncated = truncated
        self.total = total
        self.context_length = context_length


def check_long_text(long_text: str, aggregate: str) -> None:
    """Raise `InvalidInputError` unless both are names that are known."""
    for name, value, kind in (("long_text", long_text, LongText), ("aggregate", aggregate, Aggregate)):
        if value not in get_args(kind):
            raise InvalidInputError(f"{name} is {value!r}; give one of {', '.join(get_args(kind))}")


def aggregate_chunks(vectors: Floats, owners: Sequence[int], how: Aggregate) -> Floats:
    """One unit vector a text: the mean or the element-wise maximum of its chunks' vectors, normalised.

    Args:
        vectors: float32 [chunks, D].
        owners: the text of each chunk, ascending, every text at least once.
    """
    starts, counts = np.unique(owners, return_index=True, return_counts=True)[1:]
    # The sum has the direction of the mean.
    reduced = unit(_REDUCE[how].reduceat(vectors, starts, axis=0))
    single = counts == 1
    reduced[single] = vectors[starts[single]]
    return reduced
