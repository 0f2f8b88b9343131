"""The serving spec: what the server tells about the checkpoint it serves."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from .errors import ProtocolError


@dataclass(frozen=True)
class ImageSpec:
    """How images become pixels; mean and std are on the 0 to 1 scale, RGB."""

    height: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    resize_mode: str
    fill_color: tuple[int, int, int]


@dataclass(frozen=True)
class TextSpec:
    """How texts become token ids."""

    context_length: int
    vocab_size: int
    buckets: tuple[int, ...]
    pad_id: int
    sot_id: int
    eot_id: int
    clean: str
    pooling: str


@dataclass(frozen=True)
class Scoring:
    """How cosines become probabilities: `kind` is softmax or sigmoid, the scale is already exponentiated."""

    kind: str
    logit_scale: float
    logit_bias: float


@dataclass(frozen=True)
class ServingSpec:
    """The one record about a served checkpoint; `fingerprint` changes when any answer could."""

    name: str
    architecture: str
    embedding_dim: int
    image: ImageSpec
    text: TextSpec
    scoring: Scoring
    precision: str
    runtime: str
    fingerprint: str

    @classmethod
    def from_json(cls, document: str) -> ServingSpec:
        """Read the `serving_spec` parameter of a model's config; unknown keys of newer servers are left out.

        Raises:
            ProtocolError: it is not JSON, or a key is missing.
        """
        try:
            values = json.loads(document)
            sections = {"image": ImageSpec, "text": TextSpec, "scoring": Scoring}
            parts = {name: _build(section, values[name]) for name, section in sections.items()}
            spec: ServingSpec = _build(cls, {**values, **parts})
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ProtocolError(
                f"the server's serving_spec cannot be read ({type(error).__name__}: {error}); serve a repository "
                "that this version of `tritonclip export` wrote"
            ) from error
        return spec


def _build(record: type[Any], values: dict[str, Any]) -> Any:
    known = {name: values[name] for name in record.__dataclass_fields__}
    return record(**{name: tuple(value) if isinstance(value, list) else value for name, value in known.items()})
