"""Who sends what: the declared scenarios, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


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
    "image": Scenario("pictures in, embeddings out", {"embed_image": 1}, "pictures"),
    "text": Scenario("texts in, embeddings out", {"embed_text": 1}, "texts"),
    "mixed": Scenario(
        "a search service: most calls embed pictures, some texts, a few classify",
        {"embed_image": 7, "embed_text": 2, "clip": 1},
        "pictures and texts",
    ),
    "clip": Scenario("pictures against labels, probabilities out", {"clip": 1}, "pictures"),
}
