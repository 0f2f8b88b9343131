"""Long texts to chunks that fit the context: cut between sentences, else between words, else between tokens."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import regex
from clip_text import CLEAN, TextSettings, decode, place
from clip_tokenize import ClipTokenizer, open_library
from tokenizers import Encoding
from tokenizers import Tokenizer as Library

# Full stops and the like need white space behind them, for "3.5" is no end; those of other scripts need none.
# A run of them is tried from its beginning alone, and never again with a part: otherwise `....` takes quadratic time.
_SENTENCE_END = regex.compile(
    r"""(?V1) (?: (?<![.!?…]) [.!?…]++ [\p{Pf}\p{Pe}"']*+ (?=\s) | [\p{STerm}--[.!?]]++ [\p{Pf}\p{Pe}"']*+ ) \s*+
    | \n\s*+""",
    regex.VERBOSE,
)
_WORD_END = regex.compile(r"\s+")

# Chunks of more characters a token are not tried, for the time that would take; so long is only a run of one sign.
_TOKEN_LENGTH = 16


class Splitter:
    """Cuts texts for one tokenizer."""

    def __init__(self, file: Path, settings: TextSettings) -> None:
        self._max_bytes = settings.max_bytes
        self._clean = CLEAN[settings.clean]
        self._file = file
        clip = ClipTokenizer(file, settings) if settings.kind == "clip" else None
        specials = 2 if clip else self._library.num_special_tokens_to_add(is_pair=False)
        self._room = settings.context_length - specials
        enough = self._room + 1
        self._ids: Callable[[str], list[int]] = (
            (lambda text: clip.words(text, enough)) if clip else (lambda text: self._encode(text).ids)
        )
        self._longest = self._room * _TOKEN_LENGTH

    @cached_property
    def _library(self) -> Library:
        """Opened when it is needed, which for CLIP's vocabulary, opened once already, is seldom."""
        library = open_library(self._file)
        library.no_truncation()
        library.no_padding()
        return library

    def split(self, texts: Sequence[bytes]) -> tuple[list[bytes], list[int]]:
        """Chunks in order, and for each the index of its text; a text that fits is one chunk as it stands.

        Raises:
            TextError: a text is too long or no UTF-8; the message begins with its index, `text[3]: `.
        """
        chunks: list[bytes] = []
        owners: list[int] = []
        for index, text in enumerate(texts):
            own = self.split_one(index, text)
            chunks += own
            owners += [index] * len(own)
        return chunks, owners

    def split_one(self, index: int, text: bytes) -> list[bytes]:
        """The chunks of the text at place `index` of its request; as `split` otherwise."""
        with place(index):
            return [chunk.encode() for chunk in self._chunks(decode(index, text, self._max_bytes))]

    def _chunks(self, text: str) -> Iterator[str]:
        if self._fits(text):
            yield text
            return
        if not text.strip():
            yield ""
            return
        ends = [_ends(pattern, text) for pattern in (_SENTENCE_END, _WORD_END)]
        start, guess = 0, self._room
        while start < len(text):
            end = self._end(text, start, ends, guess)
            if chunk := text[start:end].strip():
                yield chunk
                # What a chunk may hold changes little from one to the next, so that few lengths have to be tried.
                guess = max(len(chunk), 4)
            start = end

    def _end(self, text: str, start: int, ends: Sequence[Sequence[int]], guess: int) -> int:
        """Where the chunk that begins at `start` ends; at least one character further, even if that does not fit."""
        trial = _Trial(self._fits, text, start, guess, self._longest)
        for level in ends:
            if (end := _furthest(level, bisect_right(level, start), start + guess, trial.fits)) is not None:
                return end
        tokens = self._token_ends(text, start, guess)
        if (end := _furthest(tokens, 0, len(text), trial.fits)) is not None:
            return end
        return _furthest(range(start + 1, len(text) + 1), 0, start + guess, trial.fits) or start + 1

    def _token_ends(self, text: str, start: int, guess: int) -> list[int]:
        """Where the first tokens after `start` end, as many as a chunk holds; none where cleaning moves characters."""
        size = guess
        while True:
            size = min(2 * size, self._longest)
            window = text[start : start + size]
            if len(self._clean(window)) != len(window):
                return []
            offsets = self._encode(window).offsets
            if len(offsets) > self._room or size == self._longest or start + size >= len(text):
                return [start + end for _, end in offsets[: self._room] if end]

    def _fits(self, text: str) -> bool:
        return len(self._ids(text)) <= self._room

    def _encode(self, text: str) -> Encoding:
        """A whole text as the library tokenizes it, without start and end."""
        return self._library.encode(self._clean(text), add_special_tokens=False)


def _ends(pattern: regex.Pattern[str], text: str) -> list[int]:
    """Where a chunk may end, ascending; the end of the text is the last."""
    return sorted({*(match.end() for match in pattern.finditer(text)), len(text)})


class _Trial:
    """Tries lengths of one chunk. What does not fit does not begin to fit by growing, so that little is tried twice.

    Args:
        fits: whether a text fits; exact, while the rest is to ask it rarely and for short texts.
        guess: about how many characters will fit.
        longest: more characters than these are not tried.
    """

    def __init__(self, fits: Callable[[str], bool], text: str, start: int, guess: int, longest: int) -> None:
        self._fits, self._text, self._start = fits, text, start
        self._fitting, self._too_long = guess, longest + 1

    def fits(self, end: int) -> bool:
        """Whether the chunk that ends at `end` fits."""
        chunk = self._text[self._start : end].strip()
        # A long one is approached from below: most of what is far too long is seen by its beginning.
        while 2 * self._fitting < len(chunk) < self._too_long:
            self._try(chunk[: 2 * self._fitting])
        return len(chunk) < self._too_long and self._try(chunk)

    def _try(self, chunk: str) -> bool:
        if fits := self._fits(chunk):
            self._fitting = max(self._fitting, len(chunk))
        else:
            self._too_long = min(self._too_long, max(len(chunk), 1))
        return fits


def _furthest(ends: Sequence[int], first: int, near: int, fits: Callable[[int], bool]) -> int | None:
    """The last of `ends` from `first` on that fits, sought from the place `near` on; None if none does."""
    if first >= len(ends):
        return None
    place, stride = max(first, bisect_right(ends, near) - 1), 1
    # What is known to fit and what is known not to, at first nothing: found by steps that double, then by halves.
    low, high = first - 1, len(ends)
    while low < place < high:
        if fits(ends[place]):
            low, place = place, place + stride
        else:
            high, place = place, place - stride
        stride *= 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(ends[middle]) else (low, middle)
    return ends[low] if low >= first else None
