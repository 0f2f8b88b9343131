"""Long texts to chunks that fit the context: cut between sentences, else between words, else between tokens."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import regex
from clip_text import CLEAN, TextSettings, decode
from clip_tokenize import ClipTokenizer, open_library
from tokenizers import Encoding

# Full stops and the like need white space behind them, for "3.5" is no end; those of other scripts need none.
_SENTENCE_END = regex.compile(
    r"""(?V1) (?: [.!?…]+ [\p{Pf}\p{Pe}"']* (?=\s) | [\p{STerm}--[.!?]]+ [\p{Pf}\p{Pe}"']* ) \s* | \n\s*""",
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
        self._library = open_library(file)
        self._library.no_truncation()
        self._library.no_padding()
        clip = ClipTokenizer(file, settings) if settings.kind == "clip" else None
        specials = 2 if clip else self._library.num_special_tokens_to_add(is_pair=False)
        self._ids: Callable[[str], list[int]] = clip.words if clip else lambda text: self._encode(text).ids
        self._room = settings.context_length - specials
        self._longest = self._room * _TOKEN_LENGTH

    def split(self, texts: Sequence[bytes]) -> tuple[list[bytes], list[int]]:
        """Chunks in order, and for each the index of its text; a text that fits is one chunk as it stands.

        Raises:
            TextError: a text is too long or no UTF-8; the message begins with its index, `text[3]: `.
        """
        chunks: list[bytes] = []
        owners: list[int] = []
        for index, text in enumerate(texts):
            own = list(self._chunks(decode(index, text, self._max_bytes)))
            chunks += [chunk.encode() for chunk in own]
            owners += [index] * len(own)
        return chunks, owners

    def _chunks(self, text: str) -> Iterator[str]:
        if self._fits(text):
            yield text
            return
        if not text.strip():
            yield ""
            return
        ends = [_ends(pattern, text) for pattern in (_SENTENCE_END, _WORD_END)]
        start = 0
        while start < len(text):
            end = self._end(text, start, ends)
            if chunk := text[start:end].strip():
                yield chunk
            start = end

    def _end(self, text: str, start: int, ends: Sequence[Sequence[int]]) -> int:
        """Where the chunk that begins at `start` ends; at least one character further, even if that does not fit."""

        def fits(end: int) -> bool:
            chunk = text[start:end].strip()
            return len(chunk) <= self._longest and self._fits(chunk)

        for level in ends:
            if (end := _furthest(level, bisect_right(level, start), fits)) is not None:
                return end
        for end in reversed(self._token_ends(text, start)):
            if fits(end):
                return end
        return _furthest(range(start + 1, len(text) + 1), 0, fits) or start + 1

    def _token_ends(self, text: str, start: int) -> list[int]:
        """Where the first tokens after `start` end, as many as a chunk holds; none where cleaning moves characters."""
        window = text[start : start + self._longest]
        if len(self._clean(window)) != len(window):
            return []
        return [start + end for _, end in self._encode(window).offsets[: self._room] if end]

    def _fits(self, text: str) -> bool:
        return len(self._ids(text)) <= self._room

    def _encode(self, text: str) -> Encoding:
        """A whole text as the library tokenizes it, without start and end."""
        return self._library.encode(self._clean(text), add_special_tokens=False)


def _ends(pattern: regex.Pattern[str], text: str) -> list[int]:
    """Where a chunk may end, ascending; the end of the text is the last."""
    return sorted({*(match.end() for match in pattern.finditer(text)), len(text)})


def _furthest(ends: Sequence[int], first: int, fits: Callable[[int], bool]) -> int | None:
    """The last of `ends` from `first` on that fits, found by steps that double, then halve; None if none does."""
    found, stride = first - 1, 1
    while found + stride < len(ends) and fits(ends[found + stride]):
        found += stride
        stride *= 2
    while stride > 1:
        stride //= 2
        if found + stride < len(ends) and fits(ends[found + stride]):
            found += stride
    return ends[found] if found >= first else None
