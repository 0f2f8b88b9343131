"""What `ftfy.fix_text` makes of a text, within bounds: ftfy repeats its fixes for as long as they change anything.

`&amp;amp;amp;…` loses one layer a round and `ÂÂÂ…©` one letter, so 64 KB of them would take ftfy minutes. The fixes are
ftfy's own; the loops around them stand here, and end with an error after as much work as ordinary texts never need.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from itertools import chain, count, groupby
from typing import Any

import regex
from ftfy import chardata, fixes
from ftfy.badness import is_bad

# How often every character of a text may be looked at; one with three layers of damage takes five rounds.
MOST_ROUNDS = 12
# Characters beyond that which any text may cost, so that a short one may be as tangled as it likes.
_SPARE = 1 << 14
# Characters of a line that ftfy mends by itself (`max_decode_length`).
_MOST_CHARACTERS = 1_000_000
# Characters' worth of work that a round takes whatever its length.
_ROUND = 16
_TOUCHED_CODES = {
    *map(ord, "\r\u2028\u2029"),
    *range(0x80, 0xA0),
    *chardata.LIGATURES,
    *chardata.WIDTH_MAP,
    *chardata.CONTROL_CHARS,
}
# What ftfy's fixes of single characters touch, quotes apart.
TOUCHED = "".join(re.escape(chr(code)) for code in sorted(_TOUCHED_CODES))
_TOUCHED = re.compile(f"[{TOUCHED}]")
# From so many on, Python's insertion sort of the marks behind one letter takes noticeable time.
_MARKS = regex.compile(r"\p{M}{64,}")


class TangledError(ValueError):
    """A text whose damage has too many layers; the message says what is allowed and what to do."""


def fix_text(text: str) -> str:
    """The text as `ftfy.fix_text` mends it.

    Raises:
        TangledError: entities or wrongly decoded letters are nested beyond what ordinary texts hold.
    """
    work, unescapes = _Work(text), True
    fixed = []
    for segment in _segments(text):
        # As in ftfy: a tag in one line stops the unescaping in all that follow.
        unescapes = unescapes and "<" not in segment
        fixed.append(work.mended(segment, unescapes=unescapes))
    return "".join(fixed)


def long_runs_of_marks(text: str) -> bool:
    """Whether Unicode's own normalisation would take long."""
    return _MARKS.search(text) is not None


def _segments(text: str) -> Iterator[str]:
    start = 0
    while start < len(text):
        end = text.find("\n", start) + 1 or len(text)
        end = min(end, start + _MOST_CHARACTERS)
        yield text[start:end]
        start = end


class _Work:
    """Mends the segments of one text, and counts the characters that it looks at."""

    def __init__(self, text: str) -> None:
        self._left = MOST_ROUNDS * len(text) + _SPARE

    def mended(self, text: str, *, unescapes: bool) -> str:
        """ftfy's `fix_text_segment`."""
        # Two rounds are nobody's fault: one that changes something, and one that finds nothing more.
        for number in count():
            before = text
            if number >= 2:
                self._spend(text)
            if unescapes and "&" in text:
                text = fixes.unescape_html(text)
            text = _fix_ascii(text) if text.isascii() else self._fix_all(text)
            if text == before:
                break
        return text

    def _fix_all(self, text: str) -> str:
        text = fixes.uncurl_quotes(_fix_characters(self._decoded(text)))
        return unicodedata.normalize("NFC", _MARKS.sub(_ordered, text))

    def _decoded(self, text: str) -> str:
        """ftfy's `fix_encoding`."""
        while not text.isascii() and is_bad(text):
            fixed = self._decoded_once(text)
            if fixed == text:
                break
            text = fixed
        return text

    def _decoded_once(self, text: str) -> str:
        for encoding in chardata.CHARMAP_ENCODINGS:
            if chardata.possible_encoding(text, encoding):
                self._spend(text, parts=4)
                try:
                    return _through_utf8(text, encoding)
                except UnicodeDecodeError:
                    pass
        if (fixed := self._decoded_in_places(text)) != text:
            return fixed
        if chardata.possible_encoding(text, "latin-1"):
            try:
                if (fixed := text.encode("latin-1").decode("windows-1252")) != text:
                    return fixed
            except UnicodeDecodeError:
                pass
        return fixes.fix_c1_controls(text)

    def _decoded_in_places(self, text: str) -> str:
        """ftfy's `decode_inconsistent_utf8`."""

        def decoded(match: Any) -> str:
            part: str = match.group()
            return self._decoded(part) if len(part) < len(text) else part

        return chardata.UTF8_DETECTOR_RE.sub(decoded, text)

    def _spend(self, text: str, parts: int = 1) -> None:
        self._left -= (len(text) + _ROUND) // parts
        if self._left < 0:
            raise TangledError(
                "HTML entities or wrongly decoded letters are nested in more layers than can be undone; a few are "
                "allowed; send the text as its reader shall see it"
            )


def _fix_ascii(text: str) -> str:
    """All that ftfy does to ASCII, entities apart."""
    if text.isprintable():
        return text
    text = fixes.fix_line_breaks(text)
    return fixes.remove_control_chars(fixes.remove_terminal_escapes(text))


def _fix_characters(text: str) -> str:
    """ftfy's fixes of single characters but quotes; surrogates are none of UTF-8's."""
    if _TOUCHED.search(text) is None:
        return text
    text = fixes.fix_latin_ligatures(fixes.fix_c1_controls(text))
    text = fixes.fix_line_breaks(fixes.fix_character_width(text))
    return fixes.remove_control_chars(fixes.remove_terminal_escapes(text))


def _through_utf8(text: str, encoding: str) -> str:
    encoded = text.encode(encoding)
    if encoding != "macroman" and chardata.ALTERED_UTF8_RE.search(encoded):
        encoded = fixes.restore_byte_a0(encoded)
    if encoding.startswith("sloppy"):
        encoded = fixes.replace_lossy_sequences(encoded)
    return encoded.decode("utf-8-variants" if 0xED in encoded or 0xC0 in encoded else "utf-8")


def _ordered(run: Any) -> str:
    """Marks as NFC wants them sorted: the same text to Unicode, and no work left for Python's normalisation."""
    decomposed = "".join(unicodedata.normalize("NFD", mark) for mark in run.group())
    groups = groupby(decomposed, key=lambda mark: bool(unicodedata.combining(mark)))
    # Those without a class stand where they are, and keep the others apart.
    return "".join(chain.from_iterable(sorted(marks, key=unicodedata.combining) for _, marks in groups))
