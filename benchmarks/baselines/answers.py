"""Whether a side computes the same as tritonclip: the same images and texts, embedding by embedding."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from baselines.environments import SideError
from baselines.http_api import Floats
from baselines.sides import Side
from tritonclip_bench.traffic.captions import captions
from tritonclip_bench.traffic.images import draw_images

# None is square, so that a crop in the place of a squash is seen.
SIZES = ((640, 480), (480, 640), (1024, 768))
PER_SIZE = 4
SEED = 1
TEXTS = 12
# Random weights embed everything alike, so cosines of 0.9 mean nothing there: what all embeddings share is taken off.
LEAST_CENTERED = 0.99


def embed_probes(side: Side) -> dict[str, Floats]:
    """The embeddings of the probes by scenario, [N, D], at length 1."""
    images = draw_images(SIZES, PER_SIZE, SEED).encoded
    texts = list(itertools.islice(captions(SEED), TEXTS))
    return {"image": _unit(side.embed_images(images)), "text": _unit(side.embed_texts(texts))}


def compare(ours: dict[str, Floats], theirs: dict[str, Floats]) -> dict[str, dict[str, float]]:
    """How near each scenario's embeddings are to ours; see `agreement`.

    Raises:
        SideError: they are of something else.
    """
    found = {scenario: agreement(ours[scenario], theirs[scenario]) for scenario in ours}
    for scenario, figures in found.items():
        if not figures["centered_cosine"] >= LEAST_CENTERED:
            raise SideError(
                f"its {scenario} embeddings are not tritonclip's: the lowest centered cosine is "
                f"{figures['centered_cosine']:.4f}, at least {LEAST_CENTERED} is wanted; what computes something else "
                "is no baseline"
            )
    return found


def agreement(ours: Floats, theirs: Floats) -> dict[str, Any]:
    """Of unit vectors [N, D] of the same N items: the lowest cosine, also with the mean of ours taken off both.

    `between_items` is the highest cosine of two different items of ours: what the lowest cosine has to be seen against.

    Raises:
        SideError: the shapes differ.
    """
    if ours.shape != theirs.shape:
        raise SideError(f"its embeddings have the shape {list(theirs.shape)}, tritonclip's {list(ours.shape)}")
    mean = ours.mean(axis=0)
    others = ours @ ours.T - 2 * np.eye(len(ours), dtype=np.float32)
    return {
        "items": len(ours),
        "cosine": float((ours * theirs).sum(axis=1).min()),
        "centered_cosine": float((_unit(ours - mean) * _unit(theirs - mean)).sum(axis=1).min()),
        "between_items": float(others.max()),
    }


def _unit(vectors: Floats) -> Floats:
    unit: Floats = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit
