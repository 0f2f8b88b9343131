"""The images that a load test sends: a folder's files, or drawn ones with the statistics of photos."""

from __future__ import annotations

import functools
import io
import itertools
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tritonclip_bench.errors import BenchError
from tritonclip_bench.traffic.image_sets import DEFAULT_SET, IMAGE_SETS, ImageSet

JPEG_QUALITY = 90
# Of a folder's sizes, that many stand in a result.
MOST_SIZES = 20
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})

# Octaves of noise whose amplitude falls with the frequency, as in photos; the last is the sensor's.
OCTAVES = (2, 4, 8, 16, 32, 64, 128)
CONTRAST = 70.0
SENSOR_NOISE = 4.0
# Wider images are drawn at this width and enlarged, and their sensor's noise is a tile in many places: drawn in full,
# twelve megapixels would take seconds.
FULL_WIDTH = 1024
NOISE_TILE = 512


@dataclass(frozen=True)
class Images:
    """Encoded images and where they come from.

    Attributes:
        encoded: one file's bytes each.
        source: for the report; no path, which would tell where somebody works.
    """

    encoded: tuple[bytes, ...]
    source: str

    def describe(self) -> dict[str, object]:
        """For the report: source, number, bytes, and megapixels and sizes of what can be read as an image."""
        sizes = [size for size in map(_size, self.encoded) if size is not None]
        count = len(self.encoded)
        return {
            "source": self.source,
            "count": count,
            "mean_bytes": round(sum(map(len, self.encoded)) / count) if count else 0,
            "mean_megapixels": sum(width * height for width, height in sizes) / len(sizes) / 1e6 if sizes else 0.0,
            "bytes": _spread([float(len(encoded)) for encoded in self.encoded]),
            "megapixels": _spread([width * height / 1e6 for width, height in sizes]),
            "sizes": {f"{width}x{height}": n for (width, height), n in Counter(sizes).most_common(MOST_SIZES)},
            "unreadable": count - len(sizes),
        }


NO_IMAGES = Images((), "none: only texts are sent")


def load_images(folder: Path | None, name: str | None = None) -> Images:
    """The files of `folder`, or where none is given the images of the set `name`, drawn."""
    return draw_set(name or DEFAULT_SET) if folder is None else read_images(folder)


def read_images(folder: Path) -> Images:
    """All image files directly in `folder`, in the order of their names.

    Raises:
        BenchError: no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise BenchError(f"--images {folder} is not a folder; give a folder of images, or leave it out")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        suffixes = " ".join(sorted(IMAGE_SUFFIXES))
        raise BenchError(f"--images {folder} holds no image; looked for {suffixes}; give another folder")
    return Images(tuple(path.read_bytes() for path in paths), "files of a folder")


@functools.lru_cache(maxsize=1)
def draw_set(name: str, seed: int = 0) -> Images:
    """Draw the set `name` of IMAGE_SETS; equal seeds draw equal pixels."""
    declared = IMAGE_SETS[name]
    sizes = list(zip(_places(declared), itertools.cycle(declared.qualities), strict=False))
    return Images(_draw(sizes, seed), f"drawn JPEGs, set {name} ({declared.help}), seed {seed}")


def draw_images(sizes: Sequence[tuple[int, int]], per_size: int, seed: int = 0) -> Images:
    """Draw `per_size` JPEGs of each (width, height); equal seeds draw equal pixels."""
    names = ", ".join(f"{width}x{height}" for width, height in sizes)
    encoded = _draw([(size, JPEG_QUALITY) for _ in range(per_size) for size in sizes], seed)
    return Images(encoded, f"drawn JPEGs, {names}, quality {JPEG_QUALITY}, seed {seed}")


def _places(declared: ImageSet) -> list[tuple[int, int]]:
    """The (width, height) of every image of a set: each next one of the size that is furthest behind its share."""
    shares = np.array([size.weight for size in declared.sizes], np.float64)
    shares /= shares.sum()
    behind = np.zeros(len(shares))
    places = []
    for place in range(declared.count):
        behind += shares
        chosen = int(np.argmax(behind.round(9)))
        behind[chosen] -= 1
        size = declared.sizes[chosen]
        upright = declared.turned and place % declared.turned == 0
        places.append((size.height, size.width) if upright else (size.width, size.height))
    return places


def _draw(sizes: Sequence[tuple[tuple[int, int], int]], seed: int) -> tuple[bytes, ...]:
    """A JPEG of each ((width, height), quality)."""
    random = np.random.default_rng(seed)
    encoded = []
    for (width, height), quality in sizes:
        encoded.append(_jpeg(_photo(random, width, height), quality))
        # Under gevent others get their turn, such as what tells locust's master that this worker lives.
        time.sleep(0.001)
    return tuple(encoded)


def _photo(random: np.random.Generator, width: int, height: int) -> Image.Image:
    """1/f noise with sensor noise on top, RGB: it compresses, decodes and resizes like a photo."""
    if max(width, height) > FULL_WIDTH:
        return _large_photo(random, width, height)
    canvas = np.full((height, width, 3), 128.0, dtype=np.float32)
    for octave in OCTAVES:
        canvas += _noise(random, octave, width, height) * (CONTRAST / octave**0.7)
    canvas += random.standard_normal(canvas.shape, dtype=np.float32) * SENSOR_NOISE
    return Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8), "RGB")


def _large_photo(random: np.random.Generator, width: int, height: int) -> Image.Image:
    """As `_photo`, faster."""
    scale = FULL_WIDTH / max(width, height)
    small = _photo(random, max(1, int(width * scale)), max(1, int(height * scale)))
    image = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    noise = random.standard_normal((NOISE_TILE, NOISE_TILE, 3), dtype=np.float32) * SENSOR_NOISE
    tile = noise.round().astype(np.int16)
    for top in range(0, height, NOISE_TILE):
        for left in range(0, width, NOISE_TILE):
            part = image[top : top + NOISE_TILE, left : left + NOISE_TILE]
            # Shifted at random, so that the tiles are no pattern.
            moved = np.roll(tile, tuple(random.integers(0, NOISE_TILE, 2)), axis=(0, 1))
            part += moved[: part.shape[0], : part.shape[1]]
    return Image.fromarray(np.clip(image, 0, 255).astype(np.uint8), "RGB")


def _noise(random: np.random.Generator, cells: int, width: int, height: int) -> NDArray[np.float32]:
    """Gaussian noise of `cells` cells along the width, interpolated; float32 [height, width, 3]."""
    rows = max(2, cells * height // width)
    planes = random.standard_normal((3, rows, cells), dtype=np.float32)
    resized = [Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC) for plane in planes]
    return np.stack([np.asarray(plane) for plane in resized], axis=-1)


def _jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    # Pillow's default, 4:2:0, is what cameras and web pages use.
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _size(encoded: bytes) -> tuple[int, int] | None:
    """Width and height, from the file's head alone; None where it is no image."""
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return image.width, image.height
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _spread(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    ordered = sorted(values)
    return {"min": ordered[0], "median": ordered[len(ordered) // 2], "max": ordered[-1]}
