"""The texts that a load test sends: never the same twice, unless a warm cache is what is measured."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
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
# Made-up names of four syllables make short texts unique.
SYLLABLES = tuple(f"{consonant}{vowel}" for consonant in "bdfgklmnprstvz" for vowel in "aeiou")
NAMES = len(SYLLABLES) ** 4
# Captions in a long text: the shortest fills half of a context of 77 tokens, the longest does not fit.
FEWEST, MOST = 3, 9
# Of ten texts of mixed lengths.
MIXED = "scscslcscs"
# Texts whose lengths are told.
SAMPLED = 1000


def captions(seed: int) -> Iterator[str]:
    """Captions without end; the first `CAPTIONS` of them differ. `seed` says where the walk starts."""
    return map(walk, itertools.count(seed))


def walk(step: int) -> str:
    """The caption at a step of the walk over all of them."""
    return caption(step * STRIDE % CAPTIONS)


def query(step: int) -> str:
    """What people type: one to four words, of which one is a name that no other of `NAMES` steps has."""
    place, syllables = step * STRIDE % NAMES, []
    for _ in range(4):
        place, syllable = divmod(place, len(SYLLABLES))
        syllables.append(SYLLABLES[syllable])
    # The walk's own words, without the adjective's article.
    adjective, color, noun = (part[step * STRIDE % len(part)] for part in PARTS[1:4])
    words = (adjective.split()[-1], color, "".join(syllables), noun)
    return " ".join(((words[2],), words[2:], words[1:], words)[step % 4])


def paragraph(step: int) -> str:
    """Several captions: some texts fit into the context, some are cut off there."""
    first = step * MOST
    return ", ".join(walk(first + more) for more in range(FEWEST + step % (MOST - FEWEST + 1)))


def mixed(step: int) -> str:
    """Half of the texts are queries, four of ten captions, one a paragraph."""
    return {"s": query, "c": walk, "l": paragraph}[MIXED[step % len(MIXED)]](step)


TEXT_LENGTHS: Mapping[str, Callable[[int], str]] = {
    "captions": walk,
    "short": query,
    "long": paragraph,
    "mixed": mixed,
}


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


def text_stream(texts: list[str] | None, *, seed: int, repeat: bool, lengths: str = "captions") -> Iterator[str]:
    """Texts without end, each new to the server's response cache unless `repeat`.

    Args:
        texts: what to send, in turn; None for made ones. Without `repeat` each gets a running number,
            because a file is soon sent twice.
        seed: where made texts and numbers start, so that two runs differ too.
        repeat: send the same few again and again.
        lengths: a name in TEXT_LENGTHS, of made texts.
    """
    made = map(TEXT_LENGTHS[lengths], itertools.count(seed))
    if repeat:
        return itertools.cycle(texts or list(itertools.islice(made, REPEATED)))
    if texts is None:
        return made
    return (f"{text} {number}" for text, number in zip(itertools.cycle(texts), itertools.count(seed)))


def describe_texts(texts: Iterator[str], source: str) -> dict[str, object]:
    """For the report: where the texts come from, and how long the first ones of the stream `texts` are."""
    sample = list(itertools.islice(texts, SAMPLED))
    words = sorted(len(text.split()) for text in sample)
    return {
        "source": source,
        "words": {"min": words[0], "median": words[len(words) // 2], "max": words[-1]},
        "mean_words": sum(words) / len(words),
        "mean_bytes": sum(len(text.encode()) for text in sample) / len(sample),
    }
