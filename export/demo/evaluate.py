"""Zero-shot accuracy of the demo: which of the labels is nearest to an image that was never seen before.

The images are made from (split, domain, seed, index) alone, so that two runtimes can be compared image
by image. They go in as files would: larger than the model's input, and not always square.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from demo.captions import LABELS, PAIRS, label, random_scene
from demo.drawing import DOMAINS, draw
from demo.model import encode_text, token_ids
from tritonclip_export.frameworks import open_clip, torch

Sample = tuple[Image.Image, int]  # an RGB image, and the index of its label in LABELS
ImageEncoder = Callable[[Sequence[Image.Image]], NDArray[np.float32]]  # N images to [N, D]
TextEncoder = Callable[[Sequence[str]], NDArray[np.float32]]  # N texts to [N, D]

CHECKPOINT = Path(__file__).parent / "checkpoint"
ADAPTER = Path(__file__).parent / "adapter"
SAMPLE_SIZES = ((96, 96), (128, 96), (96, 128), (160, 120))  # width, height in pixels
_CHUNK = 64


def samples(split: str, domain: str, seed: int, count: int) -> Iterator[Sample]:
    """`count` images of the pairs in `split` ("seen", "held-out" or "all") of `domain` ("original", "shifted")."""
    stream = (sorted(PAIRS).index(split), DOMAINS.index(domain))
    for index in range(count):
        rng = np.random.default_rng((seed, *stream, index))
        scene = random_scene(PAIRS[split], rng)
        image = draw(scene, domain, rng, SAMPLE_SIZES[int(rng.integers(len(SAMPLE_SIZES)))])
        yield image, LABELS.index(label(scene.shape, scene.color))


def png_bytes(image: Image.Image) -> bytes:
    """The image as a PNG file: what a client sends, without loss."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def nearest(images: NDArray[np.float32], texts: NDArray[np.float32]) -> NDArray[np.intp]:
    """int [N]: for each row of `images` [N, D], the row of `texts` [M, D] with the largest cosine."""
    best: NDArray[np.intp] = (_normalized(images) @ _normalized(texts).T).argmax(axis=1)
    return best


def predictions(
    encode_images: ImageEncoder, encode_texts: TextEncoder, images: Sequence[Image.Image]
) -> NDArray[np.intp]:
    """int [N]: for each image, the index of the nearest of all labels, by cosine."""
    chunks = [images[start : start + _CHUNK] for start in range(0, len(images), _CHUNK)]
    return nearest(np.concatenate([encode_images(chunk) for chunk in chunks]), encode_texts(LABELS))


def accuracy(encode_images: ImageEncoder, encode_texts: TextEncoder, drawn: Sequence[Sample]) -> float:
    """The share of samples, from 0 to 1, whose nearest label is their own."""
    chosen = predictions(encode_images, encode_texts, [image for image, _ in drawn])
    return float(np.mean(chosen == np.array([index for _, index in drawn])))


def _normalized(features: NDArray[np.float32]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = features / np.linalg.norm(features, axis=1, keepdims=True)
    return unit


def load_checkpoint(folder: Path = CHECKPOINT) -> tuple[Any, Any]:
    """The model in evaluation mode, float32, and its own image transform."""
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    return model.eval(), transform


def with_adapter(model: Any, folder: Path = ADAPTER) -> Any:
    """The model under a PEFT adapter that is not merged; `model` itself is changed."""
    from peft import PeftModel

    return PeftModel.from_pretrained(model, str(folder)).eval()


def torch_encoders(model: Any, transform: Any) -> tuple[ImageEncoder, TextEncoder]:
    """Both towers as functions from images and from texts; `model` is a CLIP, or a PeftModel of one."""
    clip = model.get_base_model() if hasattr(model, "get_base_model") else model

    def encode_images(images: Sequence[Image.Image]) -> NDArray[np.float32]:
        with torch.no_grad():
            features = clip.encode_image(torch.stack([transform(image) for image in images]))
        return np.asarray(features.numpy(), dtype=np.float32)

    def encode_texts(texts: Sequence[str]) -> NDArray[np.float32]:
        with torch.no_grad():
            return np.asarray(encode_text(clip, token_ids(texts)).numpy(), dtype=np.float32)

    return encode_images, encode_texts
