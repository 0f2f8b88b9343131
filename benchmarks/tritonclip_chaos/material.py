"""What callers send, made from a seed, and what a sound server answers to it."""

from __future__ import annotations

import io
import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from tritonclip_bench.traffic.captions import paragraph, walk
from tritonclip_chaos.errors import ChaosError, ServerFault
from tritonclip_client import ClipClient, ClipError, TruncationWarning
from tritonclip_client.results import Floats
from tritonclip_client.spec import Scoring

IMAGES, TEXTS, LONG_TEXTS = 24, 240, 12
# Of candidates, those are taken whose embeddings differ: an answer to another's question must be seen as wrong.
CANDIDATES_EACH = 4
FARTHEST_ALIKE = 0.9995
FEWEST = 4
REFERENCE_TIMEOUT_S = 120.0
_FORMATS = ("JPEG", "PNG", "WEBP")
_COLOURS = ("red", "green", "blue", "yellow", "white", "black", "purple", "orange", "cyan", "brown")


@dataclass(frozen=True)
class Material:
    """Questions and their answers.

    Attributes:
        images, image_features: encoded images, and float32 [N, D].
        texts, text_features: short texts, and float32 [M, D].
        long_texts, long_features: texts of several sentences, and the means of their chunks, float32 [K, D].
        scoring: how cosines become logits.
    """

    images: Sequence[bytes]
    image_features: Floats
    texts: Sequence[str]
    text_features: Floats
    long_texts: Sequence[str]
    long_features: Floats
    scoring: Scoring


def take_references(address: str, seed: int) -> Material:
    """Ask a server that nothing has happened to yet.

    Raises:
        ChaosError: it answers differing questions alike, so that no mix-up could be seen.
        ServerFault: it does not answer, or not as this client understands it.
    """
    chosen = random.Random(f"{seed}:material")
    images = [draw_image(chosen) for _ in range(IMAGES * CANDIDATES_EACH)]
    first = chosen.randrange(1 << 30)
    texts = [walk(first + step) for step in range(TEXTS * CANDIDATES_EACH)]
    long_texts = [". ".join((paragraph(first + 2 * n), paragraph(first + 2 * n + 1))) + "." for n in range(LONG_TEXTS)]
    scoring, image_features, text_features, long_features = _asked(address, images, texts, long_texts)
    kept = {
        name: _distinct(name, features, most)
        for name, features, most in (
            ("images", image_features, IMAGES),
            ("texts", text_features, TEXTS),
            ("long texts", long_features, LONG_TEXTS),
        )
    }
    return Material(
        [images[place] for place in kept["images"]],
        image_features[kept["images"]],
        [texts[place] for place in kept["texts"]],
        text_features[kept["texts"]],
        [long_texts[place] for place in kept["long texts"]],
        long_features[kept["long texts"]],
        scoring,
    )


def _asked(
    address: str, images: Sequence[bytes], texts: Sequence[str], long_texts: Sequence[str]
) -> tuple[Scoring, Floats, Floats, Floats]:
    try:
        with ClipClient(address, timeout_s=REFERENCE_TIMEOUT_S) as client, warnings.catch_warnings():
            warnings.simplefilter("ignore", TruncationWarning)
            return (
                client.spec.scoring,
                client.embed_images(images),
                client.embed_texts(texts),
                client.embed_texts(long_texts, long_text="chunk"),
            )
    except ClipError as error:
        raise ServerFault(
            f"the server at {address} does not answer ordinary questions, so that nothing can be held against its "
            f"answers ({error}); give one that `tritonclip health --address {address}` calls healthy"
        ) from error


def draw_image(chosen: random.Random) -> bytes:
    """A small image of shapes and noise, in one of three formats."""
    size = (chosen.randrange(200, 500), chosen.randrange(200, 500))
    noise = np.random.default_rng(chosen.randrange(1 << 31)).normal(0, 12, (size[1], size[0], 3))
    ground = Image.new("RGB", size, chosen.choice(_COLOURS))
    draw = ImageDraw.Draw(ground)
    for _ in range(chosen.randrange(1, 5)):
        left, top = chosen.randrange(size[0] // 2), chosen.randrange(size[1] // 2)
        box = (left, top, left + chosen.randrange(40, size[0] // 2), top + chosen.randrange(40, size[1] // 2))
        shape = draw.ellipse if chosen.random() < 0.5 else draw.rectangle
        shape(box, fill=chosen.choice(_COLOURS))
    pixels = np.clip(np.asarray(ground) + noise, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    options = {"lossless": True} if (kind := chosen.choice(_FORMATS)) == "WEBP" else {}
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def _distinct(name: str, features: npt.NDArray[np.float32], most: int) -> list[int]:
    """The places of at most `most` embeddings of which no two are alike."""
    kept: list[int] = []
    for place in range(len(features)):
        if len(kept) < most and (features[kept] @ features[place] < FARTHEST_ALIKE).all():
            kept.append(place)
    if len(kept) < FEWEST:
        raise ChaosError(
            f"this server embeds {len(features)} differing {name} into {len(kept)} places: an answer to another's "
            "question could not be told from the right one; give a trained model"
        )
    return kept
