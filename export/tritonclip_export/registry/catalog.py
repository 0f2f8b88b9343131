"""The models of models.json, and what was exercised of them, without importing torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tritonclip_export.errors import ExportError
from tritonclip_export.registry.families import Family, all_families, close_matches, family_of, spelling

FILE = Path(__file__).with_name("models.json")


@dataclass(frozen=True)
class Weights:
    """One set of released weights of a config.

    Attributes:
        name: open_clip's tag, or a repository of Hugging Face's hub.
        mean, std: per channel, of pixels in [0, 1].
        interpolation: "bicubic" or "bilinear".
        resize: "shortest" (then the center is cropped), "squash" or "naflex".
        quick_gelu: trained with QuickGELU, as their source records it.
    """

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    resize: str
    quick_gelu: bool

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> Weights:
        """As it stands in models.json and extra_models.json."""
        return cls(**{**entry, "mean": tuple(entry["mean"]), "std": tuple(entry["std"])})


@dataclass(frozen=True)
class Model:
    """One architecture, as `python -m tritonclip_export.registry.measure` found it.

    Attributes:
        config: open_clip's name of it, or for what open_clip lacks the one in extra_models.json.
        library: "open_clip" or "transformers", whichever has the model.
        image_size: pixels, of a square.
        context_length: tokens of the longest text.
        embed_dim: values of an embedding.
        tokenizer: "clip" for CLIP's own vocabulary, else the repository on Hugging Face's hub that has it.
        scoring: "softmax", or "sigmoid" with a bias.
        quick_gelu: what the config itself builds; see `Weights.quick_gelu`.
        image_parameters, text_parameters: of the tower with its projection.
        image_flops, text_flops: for one image, and for one text of the full length; a multiply-add is two.
        weights: released weights; none: architecture only.
    """

    config: str
    library: str
    image_size: int
    context_length: int
    embed_dim: int
    tokenizer: str
    scoring: str
    quick_gelu: bool
    image_parameters: int
    text_parameters: int
    image_flops: int
    text_flops: int
    weights: tuple[Weights, ...]

    def to_json(self) -> dict[str, Any]:
        """As it stands in models.json."""
        return asdict(self)

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> Model:
        """The inverse of `to_json`."""
        return cls(**{**entry, "weights": tuple(map(Weights.from_json, entry["weights"]))})

    def families(self) -> dict[Family, tuple[Weights, ...]]:
        """The families of this config and its weights in each: one config may have been trained by many."""
        if not self.weights:
            return {family_of(self.config): ()}
        found: dict[Family, list[Weights]] = {}
        for one in self.weights:
            found.setdefault(family_of(self.config, one.name), []).append(one)
        return {family: tuple(members) for family, members in found.items()}

    def is_misfit(self, weights: Weights) -> bool:
        """Whether these weights were trained with the other activation, so that another config has to be taken."""
        return weights.quick_gelu and not self.quick_gelu


@dataclass(frozen=True)
class Row:
    """A config within one of its families, with its weights there."""

    family: Family
    model: Model
    weights: tuple[Weights, ...]


@lru_cache(maxsize=1)
def all_models() -> tuple[Model, ...]:
    """Every model, in the order of models.json."""
    return tuple(map(Model.from_json, _data()["models"]))


def open_clip_version() -> str:
    """The version of open_clip that models.json was measured with."""
    return str(_data()["open_clip"])


def _data() -> Any:
    return json.loads(FILE.read_text("utf-8"))


def all_rows() -> Iterator[Row]:
    """Every config in every one of its families, family by family."""
    by_model = [(model, model.families()) for model in all_models()]
    for family in all_families():
        for model, families in by_model:
            if family in families:
                yield Row(family, model, families[family])


def find_model(name: str) -> Model:
    """The model of that name, in any case and punctuation.

    Raises:
        ExportError: there is none; the message names the closest.
    """
    models = {model.config: model for model in all_models()}
    if name in models:
        return models[name]
    found = [model for config, model in models.items() if spelling(config) == spelling(name)]
    if len(found) != 1:
        raise ExportError(
            f"no model is called {name!r}; {close_matches(name, list(models))}. `tritonclip models` lists all "
            f"{len(models)}"
        )
    return found[0]
