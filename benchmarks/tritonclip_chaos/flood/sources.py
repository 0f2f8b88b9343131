"""The three kinds of requests that floods are made of, and what a server answers that is at rest."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tritonclip_bench.traffic.images import draw_images
from tritonclip_chaos.flood.outcome import Source
from tritonclip_chaos.flood.requests import embed_request, write_requests
from tritonclip_chaos.material import REFERENCE_TIMEOUT_S, Material
from tritonclip_client import ClipClient

LARGE, MIDDLE, SMALL = (4000, 3000), (1024, 768), (256, 256)
# In a request of texts, and how many differing requests there are: what is in the response cache is no work.
TEXTS_EACH, TEXT_REQUESTS = 32, 10_000
IMAGES_EACH_SIZE = 3
# 12 megapixels are 1.1 MB then, as from a phone; sending them must cost the generator little.
QUALITY = 80


def images(address: str, folder: Path, size: tuple[int, int], deadline_s: float, seed: int, batch: int = 1) -> Source:
    """Requests of `batch` drawn JPEGs of one size."""
    encoded = [_smaller(one) for one in draw_images([size], IMAGES_EACH_SIZE, seed).encoded]
    with ClipClient(address, timeout_s=REFERENCE_TIMEOUT_S) as client:
        features = np.concatenate([client.embed_images([one]) for one in encoded])
    places = (np.arange(batch) + np.arange(IMAGES_EACH_SIZE)[:, None]) % IMAGES_EACH_SIZE
    requests = (embed_request("image", [encoded[place] for place in row], deadline_s) for row in places)
    path = folder / f"{size[0]}x{size[1]}x{batch}.requests"
    write_requests(path, requests)
    return Source(path, places, features)


def _smaller(image: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(image)).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def texts(material: Material, folder: Path, deadline_s: float, seed: int, batch: int = TEXTS_EACH) -> Source:
    """Requests of `batch` texts each, every one another combination."""
    encoded = [text.encode() for text in material.texts]
    places = np.random.default_rng((seed, batch)).integers(0, len(encoded), (TEXT_REQUESTS, batch))
    path = folder / f"texts-{batch}.requests"
    write_requests(path, (embed_request("text", [encoded[place] for place in row], deadline_s) for row in places))
    return Source(path, places, material.text_features)


# By the name of its case, the source and the encoder that works for it.
Maker = Callable[[str, Material, Path, float, int], Source]
KINDS: dict[str, tuple[Maker, str]] = {
    "JPEG of 12 megapixels": (lambda a, m, f, d, s: images(a, f, LARGE, d, s), "image_encoder"),
    "JPEG of 0.8 megapixels": (lambda a, m, f, d, s: images(a, f, MIDDLE, d, s), "image_encoder"),
    f"{TEXTS_EACH} texts": (lambda a, m, f, d, s: texts(m, f, d, s), "text_encoder"),
}
