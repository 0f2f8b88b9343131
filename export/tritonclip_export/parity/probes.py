"""The images and texts that the parity gate compares embeddings on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from tritonclip_export.checkpoints.hugging_face.naflex import join_rows, split_rows
from tritonclip_export.checkpoints.hugging_face.processors import hf_pixel_values
from tritonclip_export.checkpoints.tokenization import Tokenization
from tritonclip_export.errors import ExportError
from tritonclip_export.frameworks import torch

SEED = 20260
# Landscape, portrait, square, smaller than the tower, and a strip: squash and crop differ on all but one.
SIZES = ((640, 480), (480, 640), (512, 512), (96, 64), (900, 200), (333, 500), (1024, 768), (200, 200))
# Probes that a tower embeds at a time: the user's own may be thousands.
CHUNK = 32
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

TEXTS = (
    "",
    "a",
    "a photo of a cat",
    "a photo of a dog.",
    "a large red circle in the top left",
    "a small blue square on a white background",
    "two people riding bicycles along a canal in the rain",
    "Ein Foto von einem Hund am Strand bei Sonnenuntergang",
    "une photo d’un café à Montréal, façade bleue",
    "猫の写真",
    "an aerial view of a harbor with container ships, cranes, and railway tracks at dawn",
    "price: $1,299.99 (50% off!) — limited time only",
    "a close-up of a circuit board " * 3,
    "the quick brown fox jumps over the lazy dog " * 10,
)


@dataclass(frozen=True)
class Probes:
    """Inputs of both towers.

    Attributes:
        pixels: uint8 [N, H, W, 3], the checkpoint's own transform before normalisation; or rows, see `naflex`.
        pixel_values: float32 [N, 3, H, W] or rows, the same, normalised by that transform.
        input_ids: int32 [M, context_length].
        names: what a report calls them: of the N images, and of the M texts.
    """

    pixels: torch.Tensor
    pixel_values: torch.Tensor
    input_ids: torch.Tensor
    names: tuple[Sequence[str], Sequence[str]]


def make_probes(
    preprocess_cfg: dict[str, Any],
    tokenization: Tokenization,
    *,
    images: Path | None = None,
    texts: Path | None = None,
) -> Probes:
    """The probes of `gather`, as both towers take them.

    Raises:
        ExportError: the folder or file has nothing in it that can be used.
    """
    probes, captions = gather(images, texts)
    pixel_values = transform_images(list(probes.values()), preprocess_cfg)
    pixels = to_uint8(pixel_values, preprocess_cfg)
    return Probes(pixels, pixel_values, tokenization(captions), (list(probes), captions))


def gather(images: Path | None, texts: Path | None) -> tuple[dict[str, Image.Image], list[str]]:
    """Built-in images, by name, and texts, and the user's own: a folder of images, a file with a text a line.

    Raises:
        ExportError: the folder or file has nothing in it that can be used.
    """
    files = _image_files(images) if images else []
    names = [f"synthetic {width} x {height}" for width, height in SIZES]
    probes = dict(zip(names, synthetic_images(), strict=True))
    probes |= {path.name: _read_image(path) for path in files}
    return probes, [*TEXTS, *(_read_lines(texts) if texts else [])]


def transform_images(images: Sequence[Image.Image], preprocess_cfg: dict[str, Any]) -> torch.Tensor:
    """The checkpoint's own transform, by the library that owns it: float32 [N, 3, H, W] or rows, normalised."""
    if "crop_offset" in preprocess_cfg:
        return hf_pixel_values(images, preprocess_cfg)
    from open_clip.transform import PreprocessCfg, image_transform_v2

    transform = image_transform_v2(PreprocessCfg(**preprocess_cfg), is_train=False)
    return torch.stack([transform(image) for image in images])


def to_uint8(pixel_values: torch.Tensor, preprocess_cfg: dict[str, Any]) -> torch.Tensor:
    """Undo the normalisation, exactly: [N, 3, H, W] float32 to [N, H, W, 3] uint8, or rows to rows (see `naflex`)."""
    if preprocess_cfg["resize_mode"] == "naflex":
        patches, grids = split_rows(pixel_values)
        colors = patches.unflatten(-1, (-1, 3)).movedim(-1, 1)
        levels = to_uint8(colors, {**preprocess_cfg, "resize_mode": "squash"})
        return join_rows(levels.flatten(2), grids)
    mean = torch.tensor(preprocess_cfg["mean"]).reshape(1, 3, 1, 1)
    std = torch.tensor(preprocess_cfg["std"]).reshape(1, 3, 1, 1)
    levels = (pixel_values * std + mean) * 255
    return levels.round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()


def synthetic_images() -> list[Image.Image]:
    """Gradients, grain and shapes, seeded, in the sizes of `SIZES`."""
    generator = np.random.default_rng(SEED)
    return [_synthetic_image(generator, *size) for size in SIZES]


def _synthetic_image(generator: np.random.Generator, width: int, height: int) -> Image.Image:
    rows, columns = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    waves = generator.uniform(1, 9, (3, 2))
    layers = [np.sin(6.28 * (a * rows + b * columns)) for a, b in waves]
    image = np.stack(layers, axis=-1) * 60 + generator.uniform(60, 190, 3)
    center, radius = generator.uniform(0.2, 0.8, 2), generator.uniform(0.1, 0.3)
    inside = (rows - center[0]) ** 2 + (columns - center[1]) ** 2 < radius**2
    image[inside] = generator.uniform(0, 255, 3)
    image += generator.normal(0, 6, image.shape)
    return Image.fromarray(image.clip(0, 255).astype(np.uint8))


def _image_files(folder: Path) -> list[Path]:
    files = sorted(p for p in folder.glob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise ExportError(f"{folder} holds no images; allowed: {', '.join(IMAGE_SUFFIXES)}")
    return files


def _read_image(path: Path) -> Image.Image:
    try:
        image: Image.Image = Image.open(path).convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise ExportError(f"the probe image {path} cannot be read ({error}); remove or replace it") from error
    return image


def _read_lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"the probe texts {path} cannot be read as UTF-8 ({error})") from error
    return [line for line in lines if line.strip()]
