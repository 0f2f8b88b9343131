"""The kinds of calls that callers make, and how their answers are held against the references."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np

from tritonclip_chaos.material import Material
from tritonclip_client import ClipClient
from tritonclip_client.results import Floats

SAME_COSINE = 0.99999
# Logits are a hundred cosines; float32 sums in another order move them less.
SAME_LOGIT = 0.01

# Raises WrongAnswer; returns whether everything was bitwise as the reference.
Call = Callable[[ClipClient, Material, random.Random], bool]


class WrongAnswer(Exception):  # noqa: N818 - it is no error of the program
    """The server answered, but not with what it answered before."""


def image(client: ClipClient, material: Material, chosen: random.Random) -> bool:
    """Embed one or two images."""
    places = chosen.sample(range(len(material.images)), chosen.randint(1, 2))
    answer = client.embed_images([material.images[place] for place in places])
    return compare("image embedding", answer, material.image_features[places])


def text(client: ClipClient, material: Material, chosen: random.Random) -> bool:
    """Embed three texts: a combination that is in nobody's cache."""
    places = chosen.sample(range(len(material.texts)), 3)
    answer = client.embed_texts([material.texts[place] for place in places])
    return compare("text embedding", answer, material.text_features[places])


def clip(client: ClipClient, material: Material, chosen: random.Random) -> bool:
    """Score an image against three texts."""
    place, texts = chosen.randrange(len(material.images)), chosen.sample(range(len(material.texts)), 3)
    answer = client.similarity([material.images[place]], [material.texts[one] for one in texts])
    features, text_features = material.image_features[[place]], material.text_features[texts]
    exact = compare("image embedding", answer.image_features, features)
    exact &= compare("text embedding", answer.text_features, text_features)
    logits = features @ text_features.T * material.scoring.logit_scale + material.scoring.logit_bias
    if not np.allclose(answer.logits, logits, rtol=0, atol=SAME_LOGIT * max(1.0, material.scoring.logit_scale / 100)):
        raise WrongAnswer(f"logits are up to {np.abs(answer.logits - logits).max():g} off")
    return exact


def long_text(client: ClipClient, material: Material, chosen: random.Random) -> bool:
    """Have a long text cut and embedded in chunks."""
    place = chosen.randrange(len(material.long_texts))
    answer = client.embed_texts([material.long_texts[place]], long_text="chunk")
    return compare("long text's embedding", answer, material.long_features[[place]])


CALLS: dict[str, Call] = {"image": image, "text": text, "clip": clip, "long text": long_text}
# Of sixteen callers, how many make each kind all the time: one kind's outage must not be hidden by the others.
SHARES = {"image": 6, "text": 5, "clip": 3, "long text": 2}


def compare(what: str, answer: Floats, expected: Floats) -> bool:
    """Whether `answer` is bitwise as expected; both float32 [N, D].

    Raises:
        WrongAnswer: a row points elsewhere, or the shape is another.
    """
    if answer.shape != expected.shape:
        raise WrongAnswer(f"{what}: shape {list(answer.shape)}, not {list(expected.shape)}")
    if np.array_equal(answer, expected):
        return True
    lengths = np.linalg.norm(answer, axis=1) * np.linalg.norm(expected, axis=1)
    cosine = float(((answer * expected).sum(axis=1) / lengths).min())
    # NaN is not at least anything.
    if not cosine >= SAME_COSINE:
        raise WrongAnswer(f"{what}: cosine {cosine:.6f} with the reference")
    return False
