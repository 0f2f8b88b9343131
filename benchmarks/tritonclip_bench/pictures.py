"""The pictures that a load test sends: a folder's files, or drawn ones with the statistics of photos."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tritonclip_bench.errors import BenchError

SIZES = ((640, 480), (1024, 768))  # width, height in pixels
PER_SIZE = 16
JPEG_QUALITY = 90
PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})

# Octaves of noise whose amplitude falls with the frequency, as in photos; the last is the sensor's.
OCTAVES = (2, 4, 8, 16, 32, 64, 128)
CONTRAST = 70.0
SENSOR_NOISE = 4.0


@dataclass(frozen=True)
class Pictures:
    """Encoded pictures and where they come from.

    Attributes:
        encoded: one file's bytes each.
        source: for the report; no path, which would tell where somebody works.
    """

    encoded: tuple[bytes, ...]
    source: str

    def describe(self) -> dict[str, object]:
        """Source, number and mean size in bytes, for the report."""
        mean = sum(map(len, self.encoded)) / len(self.encoded)
        return {"source": self.source, "count": len(self.encoded), "mean_bytes": round(mean)}


def load_pictures(folder: Path | None) -> Pictures:
    """The files of `folder`, or drawn pictures where none is given."""
    return draw_pictures() if folder is None else read_pictures(folder)


def read_pictures(folder: Path) -> Pictures:
    """All picture files directly in `folder`, in the order of their names.

    Raises:
        BenchError: no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise BenchError(f"--pictures {folder} is not a folder; give a folder of pictures, or leave it out")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES)
    if not paths:
        suffixes = " ".join(sorted(PICTURE_SUFFIXES))
        raise BenchError(f"--pictures {folder} holds no picture; looked for {suffixes}; give another folder")
    return Pictures(tuple(path.read_bytes() for path in paths), "files of a folder")


def draw_pictures(sizes: Sequence[tuple[int, int]] = SIZES, per_size: int = PER_SIZE, seed: int = 0) -> Pictures:
    """Draw `per_size` JPEGs of each (width, height); equal seeds draw equal pixels."""
    random = np.random.default_rng(seed)
    encoded = tuple(_jpeg(_photo(random, *size)) for _ in range(per_size) for size in sizes)
    names = ", ".join(f"{width}x{height}" for width, height in sizes)
    return Pictures(encoded, f"drawn JPEGs, {names}, quality {JPEG_QUALITY}, seed {seed}")


def _photo(random: np.random.Generator, width: int, height: int) -> Image.Image:
    """1/f noise with sensor noise on top, RGB: it compresses, decodes and resizes like a photo."""
    canvas = np.full((height, width, 3), 128.0, dtype=np.float32)
    for octave in OCTAVES:
        canvas += _noise(random, octave, width, height) * (CONTRAST / octave**0.7)
    canvas += random.standard_normal(canvas.shape, dtype=np.float32) * SENSOR_NOISE
    return Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8), "RGB")


def _noise(random: np.random.Generator, cells: int, width: int, height: int) -> NDArray[np.float32]:
    """Gaussian noise of `cells` cells along the width, interpolated; float32 [height, width, 3]."""
    rows = max(2, cells * height // width)
    planes = random.standard_normal((3, rows, cells), dtype=np.float32)
    resized = [Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC) for plane in planes]
    return np.stack([np.asarray(plane) for plane in resized], axis=-1)


def _jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
