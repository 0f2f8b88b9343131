"""The texts that a load test sends: never the same twice, unless a warm cache is what is measured."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

from tritonclip_bench.errors import BenchError

# One word of each, in this order, makes a caption of 10 to 14 tokens.
PARTS: tuple[tuple[str, ...], ...] = (
    ("a photo of", "a picture of", "a drawing of", "a close-up of", "a blurry photo of", "a postcard of"),
    ("a small", "a large", "an old", "a new", "a wet", "a dusty", "a painted", "a broken", "a shiny", "a lonely"),
    ("red", "green", "blue", "yellow", "black", "white", "brown", "orange", "purple", "grey", "pink", "golden"),
    (
        *("dog", "cat", "horse", "bird", "car", "bicycle", "boat", "train", "chair", "table", "lamp", "clock"),
        *("house", "bridge", "tower", "tree", "flower", "apple", "cake", "cup", "shoe", "hat", "book", "guitar"),
    ),
    (
        *("standing", "lying", "waiting", "seen", "left", "found", "photographed", "resting", "hidden"),
        *("sleeping", "turning"),
    ),
    (
        *("on the beach", "in the snow", "in a kitchen", "on a street", "under a tree", "near a lake"),
        *("in a garden", "on a roof", "at a market", "in a museum", "beside a wall", "on a meadow", "in the rain"),
    ),
    ("at night", "at noon", "at dawn", "in summer", "in winter", "in autumn", "in spring"),
)
CAPTIONS = math.prod(map(len, PARTS))
# Prime and no divisor of CAPTIONS: the walk visits every caption once before it comes back.
STRIDE = 1_299_709
REPEATED = 64


def captions(seed: int) -> Iterator[str]:
    """Captions without end; the first `CAPTIONS` of them differ. `seed` says where the walk starts."""
    return (caption((seed + step) * STRIDE % CAPTIONS) for step in itertools.count())


def caption(index: int) -> str:
    """Caption number `index`, 0 to `CAPTIONS` - 1."""
    words = []
    for part in reversed(PARTS):
        index, place = divmod(index, len(part))
        words.append(part[place])
    return " ".join(reversed(words))


def read_texts(path: Path) -> list[str]:
    """The lines of a UTF-8 file that are not empty.

    Raises:
        BenchError: no such file, not UTF-8, or no text in it.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"--texts {path} cannot be read ({error}); give a UTF-8 file, one text a line") from None
    texts = [line for line in lines if line]
    if not texts:
        raise BenchError(f"--texts {path} holds no text; give a UTF-8 file, one text a line")
    return texts


def text_stream(texts: list[str] | None, *, seed: int, repeat: bool) -> Iterator[str]:
    """Texts without end, each new to the server's response cache unless `repeat`.

    Args:
        texts: what to send, in turn; None for captions. Without `repeat` each gets a running number,
            because a file is soon sent twice.
        seed: where captions and numbers start, so that two runs differ too.
        repeat: send the same few again and again.
    """
    if repeat:
        return itertools.cycle(texts or list(itertools.islice(captions(seed), REPEATED)))
    if texts is None:
        return captions(seed)
    return (f"{text} {number}" for text, number in zip(itertools.cycle(texts), itertools.count(seed)))
