"""Who sends what: the declared scenarios, as data, and a user's own mix of calls."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass

# A call of `classify` goes to the repository's classifier, a model of its own.
CALLS = ("embed_image", "embed_text", "clip", "classify")
CLASSIFIER_PREFIX = "classify_"
IMAGE_CALLS = frozenset({"embed_image", "clip", "classify"})
MOST_WEIGHT = 1000


@dataclass(frozen=True)
class Scenario:
    """One kind of traffic.

    Attributes:
        help: for people.
        weights: how often a user calls each entry point, relative to the others.
        item: what is counted and priced.
    """

    help: str
    weights: Mapping[str, int]
    item: str


SCENARIOS: Mapping[str, Scenario] = {
    "image": Scenario("images in, embeddings out", {"embed_image": 1}, "images"),
    "text": Scenario("texts in, embeddings out", {"embed_text": 1}, "texts"),
    "mixed": Scenario(
        "a search service: most calls embed images, some texts, a few classify",
        {"embed_image": 7, "embed_text": 2, "clip": 1},
        "images and texts",
    ),
    "clip": Scenario("images against labels, probabilities out", {"clip": 1}, "images"),
    "classify": Scenario("images in, labels of a baked classifier out", {"classify": 1}, "images"),
}
# Names of the calls for the scenarios that consist of one.
ALIASES: Mapping[str, str] = {"embed_image": "image", "embed_text": "text"}


def scenario_name(text: str) -> str:
    """An argparse type: the name in SCENARIOS that `text`, a name or an alias, stands for."""
    return ALIASES.get(text, text)


def mix(text: str) -> str:
    """An argparse type: weights such as embed_image=7,embed_text=2, as text that `parse_mix` reads.

    Raises:
        argparse.ArgumentTypeError: not such weights.
    """
    parse_mix(text)
    return text


def parse_mix(text: str) -> dict[str, int]:
    """Weights such as embed_image=7,embed_text=2,clip=1,classify=1.

    Raises:
        argparse.ArgumentTypeError: not such weights.
    """
    weights: dict[str, int] = {}
    for part in text.split(","):
        name, _, number = part.strip().partition("=")
        is_new = name in CALLS and name not in weights
        if not (is_new and number.isdecimal() and 0 < int(number) <= MOST_WEIGHT):
            raise argparse.ArgumentTypeError(
                f"{text!r}: {part.strip()!r} is no weight; give each of {', '.join(CALLS)} once at most, with a whole "
                f"number from 1 to {MOST_WEIGHT}, such as embed_image=7,embed_text=2"
            )
        weights[name] = int(number)
    return weights


def traffic(options: argparse.Namespace) -> Scenario:
    """The scenario that `options` (`scenario`, and `mix` where it is given) describe."""
    declared = SCENARIOS[options.scenario]
    if getattr(options, "mix", None) is None:
        return declared
    weights = parse_mix(options.mix)
    return Scenario("a mix of its own", weights, item_of(weights))


def item_of(weights: Mapping[str, int]) -> str:
    """What the calls of a mix count."""
    kinds = {name in IMAGE_CALLS for name in weights}
    return {frozenset({True}): "images", frozenset({False}): "texts"}.get(frozenset(kinds), "images and texts")
