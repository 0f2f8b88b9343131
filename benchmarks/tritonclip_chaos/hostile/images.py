"""Structure-aware mutation of image files, from a seed."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, features

from tritonclip_chaos.hostile.segments import FORMATS, Parts, repair, split

_EDGES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)
# How often checksums and sizes are made right after a mutation: else most mutants die at the first look.
_REPAIRED = 0.7
_MOST_COPIES = 64
_MOST_STEPS = 4


def formats() -> tuple[str, ...]:
    """The formats that the installed Pillow can write."""
    return tuple(name for name in FORMATS if name != "AVIF" or features.check("avif"))


def originals(image_format: str, seed: int) -> list[bytes]:
    """Valid files of one format, small and different in kind: modes, progressive or tiled, with and without palette."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    image = Image.fromarray(pixels).resize((96, 72), Image.Resampling.BICUBIC)
    return [_encoded(image, image_format, mode, options) for mode, options in _KINDS[image_format]]


def mutants(image_format: str, seed: int, count: int) -> Iterator[bytes]:
    """`count` mutants of the originals of one format; the same seed gives the same ones."""
    chance = random.Random(f"{image_format} {seed}")
    sources = originals(image_format, seed)
    for _ in range(count):
        parts = split(image_format, chance.choice(sources))
        for _ in range(chance.randint(1, _MOST_STEPS)):
            parts = chance.choice(_STEPS)(parts, chance) or [b""]
        yield repair(image_format, parts) if chance.random() < _REPAIRED else b"".join(parts)


def _encoded(image: Image.Image, image_format: str, mode: str, options: dict[str, object]) -> bytes:
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, image_format, **options)
    return buffer.getvalue()


def _flip_bit(parts: Parts, chance: random.Random) -> Parts:
    index = chance.randrange(len(parts))
    return _edited(parts, index, _flipped(parts[index], chance))


def _flipped(part: bytes, chance: random.Random) -> bytes:
    if not part:
        return part
    place = chance.randrange(min(len(part), 64) if chance.random() < 0.5 else len(part))
    return part[:place] + bytes([part[place] ^ 1 << chance.randrange(8)]) + part[place + 1 :]


def _set_number(parts: Parts, chance: random.Random) -> Parts:
    """Overwrite 1, 2 or 4 bytes near a part's head, where lengths and dimensions stand, with a value from the edge."""
    index, width = chance.randrange(len(parts)), chance.choice((1, 2, 4))
    part, step = parts[index], chance.choice((1, -1))
    place = chance.randrange(max(min(len(part), 32) - width, 0) + 1)
    value = (chance.choice(_EDGES) & ((1 << 8 * width) - 1)).to_bytes(width, "big")[::step]
    return _edited(parts, index, part[:place] + value + part[place + width :])


def _remove(parts: Parts, chance: random.Random) -> Parts:
    index = chance.randrange(len(parts))
    return [*parts[:index], *parts[index + 1 :]]


def _repeat(parts: Parts, chance: random.Random) -> Parts:
    index = chance.randrange(len(parts))
    return [*parts[:index], *[parts[index]] * chance.randint(2, _MOST_COPIES), *parts[index + 1 :]]


def _swap(parts: Parts, chance: random.Random) -> Parts:
    first, second = chance.randrange(len(parts)), chance.randrange(len(parts))
    swapped = list(parts)
    swapped[first], swapped[second] = parts[second], parts[first]
    return swapped


def _cut(parts: Parts, chance: random.Random) -> Parts:
    index = chance.randrange(len(parts))
    return [*parts[:index], parts[index][: chance.randrange(len(parts[index]) + 1)]]


def _insert_noise(parts: Parts, chance: random.Random) -> Parts:
    index = chance.randrange(len(parts) + 1)
    return [*parts[:index], chance.randbytes(chance.randint(1, 4096)), *parts[index:]]


def _edited(parts: Parts, index: int, part: bytes) -> Parts:
    return [*parts[:index], part, *parts[index + 1 :]]


_STEPS: tuple[Callable[[Parts, random.Random], Parts], ...] = (
    _flip_bit,
    _flip_bit,
    _set_number,
    _set_number,
    _remove,
    _repeat,
    _swap,
    _cut,
    _insert_noise,
)
_KINDS: dict[str, tuple[tuple[str, dict[str, object]], ...]] = {
    "JPEG": (("RGB", {}), ("L", {}), ("CMYK", {}), ("RGB", {"progressive": True})),
    "PNG": (("RGB", {}), ("RGBA", {}), ("P", {}), ("I;16", {}), ("1", {})),
    "WEBP": (("RGB", {}), ("RGBA", {"lossless": True})),
    "GIF": (("P", {}), ("L", {})),
    "BMP": (("RGB", {}), ("P", {}), ("1", {})),
    "TIFF": (("RGB", {}), ("RGB", {"compression": "tiff_lzw"}), ("L", {"compression": "tiff_deflate"}), ("CMYK", {})),
    "AVIF": (("RGB", {}),),
}
