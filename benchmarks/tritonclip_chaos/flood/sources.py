"""The three kinds of requests that floods are made of, and what a server answers that is at rest."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tritonclip_bench.pictures import draw_pictures
from tritonclip_chaos.flood.outcome import Source, prepare
from tritonclip_chaos.flood.requests import embed_request
from tritonclip_chaos.material import REFERENCE_TIMEOUT_S, Material
from tritonclip_client import ClipClient

LARGE, MIDDLE, SMALL = (4000, 3000), (1024, 768), (256, 256)
# In a request of texts, and how many differing requests there are: what is in the response cache is no work.
TEXTS_EACH, TEXT_REQUESTS = 8, 30_000
PICTURES_EACH_SIZE = 3


def pictures(address: str, folder: Path, size: tuple[int, int], deadline_s: float, seed: int, batch: int = 1) -> Source:
    """Requests of `batch` drawn JPEGs of one size."""
    encoded = draw_pictures([size], PICTURES_EACH_SIZE, seed).encoded
    with ClipClient(address, timeout_s=REFERENCE_TIMEOUT_S) as client:
        features = np.concatenate([client.embed_images([one]) for one in encoded])
    requests, expected = [], []
    for first in range(PICTURES_EACH_SIZE):
        places = [(first + more) % PICTURES_EACH_SIZE for more in range(batch)]
        requests.append(embed_request("image", [encoded[place] for place in places], deadline_s))
        expected.append(features[places])
    return prepare(folder / f"{size[0]}x{size[1]}x{batch}.requests", requests, np.stack(expected))


def texts(material: Material, folder: Path, deadline_s: float, seed: int, batch: int = TEXTS_EACH) -> Source:
    """Requests of `batch` texts each, every one another combination."""
    chosen = random.Random(f"{seed}:texts:{batch}")
    requests, expected = [], []
    for _ in range(TEXT_REQUESTS if batch <= TEXTS_EACH else TEXT_REQUESTS // 10):
        places = chosen.choices(range(len(material.texts)), k=batch)
        requests.append(embed_request("text", [material.texts[place].encode() for place in places], deadline_s))
        expected.append(material.text_features[places])
    return prepare(folder / f"texts-{batch}.requests", requests, np.stack(expected))


# By the name of its case, the source and the encoder that works for it.
Maker = Callable[[str, Material, Path, float, int], Source]
KINDS: dict[str, tuple[Maker, str]] = {
    "JPEG of 12 megapixels": (lambda a, m, f, d, s: pictures(a, f, LARGE, d, s), "image_encoder"),
    "JPEG of 0.8 megapixels": (lambda a, m, f, d, s: pictures(a, f, MIDDLE, d, s), "image_encoder"),
    f"{TEXTS_EACH} texts": (lambda a, m, f, d, s: texts(m, f, d, s), "text_encoder"),
}
