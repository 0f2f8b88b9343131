"""UTF-8 texts to token ids, as open_clip's SimpleTokenizer makes them, several times faster.

The vocabulary, the merges and the word pattern come from one file of the `tokenizers` library. Around it
stand open_clip's own cleaning, with ftfy left out where it provably changes nothing, and a bounded memory
of the ids of words.
"""

from __future__ import annotations

import html
import json
import re
import string
import unicodedata
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ftfy
import numpy as np
import numpy.typing as npt
import regex
from ftfy import chardata
from ftfy.badness import is_bad
from tokenizers import Tokenizer as Bpe
from tokenizers import pre_tokenizers

REMEMBERED_WORDS = 1 << 16
REMEMBERED_LENGTH = 64

_QUOTES = dict.fromkeys((0x02BC, *range(0x2018, 0x201C)), "'") | dict.fromkeys(range(0x201C, 0x2020), '"')
_CURLY = re.compile("[" + "".join(map(chr, _QUOTES)) + "]")
_TOUCHED_CODES = {
    *map(ord, "&\n\r\u2028\u2029"),
    *range(0x80, 0xA0),
    *chardata.LIGATURES,
    *chardata.WIDTH_MAP,
    *chardata.CONTROL_CHARS,
}
_TOUCHED_BY_FTFY = re.compile("[" + "".join(re.escape(chr(code)) for code in sorted(_TOUCHED_CODES)) + "]")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class TextError(ValueError):
    """A text that cannot be tokenized: what was given; what is allowed; what to do."""


@dataclass(frozen=True)
class TextSettings:
    """What the tokenizer must know of the checkpoint.

    Attributes:
        context_length: the longest row of ids, start and end included.
        buckets: the row lengths that are made, ascending; the last is `context_length`.
        clean: open_clip's name for the cleaning: lower, whitespace or canonicalize.
        max_bytes: the longest text, in bytes of UTF-8.
    """

    context_length: int
    buckets: tuple[int, ...]
    pad_id: int
    sot_id: int
    eot_id: int
    clean: str
    max_bytes: int

    def __post_init__(self) -> None:
        if self.clean not in FOLD:
            raise ValueError(f"clean is {self.clean!r}; {', '.join(FOLD)} are allowed; set the parameter `clean`")
        if list(self.buckets) != sorted(set(self.buckets)) or self.buckets[-1:] != (self.context_length,):
            raise ValueError(
                f"buckets are {self.buckets}; ascending lengths that end with the context length "
                f"{self.context_length} are allowed; set the parameter `buckets`"
            )


def settings_from(parameters: Mapping[str, str]) -> TextSettings:
    """Read the parameters of config.pbtxt, all of them strings."""
    numbers = ("context_length", "pad_id", "sot_id", "eot_id", "max_bytes")
    return TextSettings(
        buckets=tuple(int(length) for length in parameters["buckets"].split(",")),
        clean=parameters["clean"],
        **{name: int(parameters[name]) for name in numbers},
    )


class ClipTokenizer:
    """Texts to rows of ids: start, words, end, padding."""

    def __init__(self, file: Path, settings: TextSettings) -> None:
        self.settings = settings
        self._fold = FOLD[settings.clean]
        self._bpe = Bpe.from_file(str(file))
        self._words = regex.compile(_word_pattern(file))
        # The words are found here, with the engine that open_clip uses; the library only merges bytes.
        self._bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self._remembered: dict[str, list[int]] = {}

    def encode(self, texts: Sequence[bytes]) -> npt.NDArray[np.int32]:
        """Token ids, int32 [B, L], L the smallest bucket that holds the longest text.

        Raises:
            TextError: a text is too long or no UTF-8; the message begins with its index, `text[3]: `.
        """
        rows = [self._row(index, text) for index, text in enumerate(texts)]
        longest = max(map(len, rows), default=0)
        length = next(bucket for bucket in self.settings.buckets if bucket >= longest)
        padding = [self.settings.pad_id] * length
        flat: list[int] = []
        for row in rows:
            flat += row
            flat += padding[len(row) :]
        # Several times faster than numpy's own reading of a list.
        return np.frombuffer(array("i", flat), np.int32).reshape(-1, length)

    def _row(self, index: int, text: bytes) -> list[int]:
        settings = self.settings
        ids = [settings.sot_id]
        for chunk in self._fold(basic_clean(decode(index, text, settings.max_bytes))).split():
            ids += self._remembered.get(chunk) or self._encode_chunk(chunk)
            if len(ids) >= settings.context_length:
                del ids[settings.context_length - 1 :]
                break
        ids.append(settings.eot_id)
        return ids

    def _encode_chunk(self, chunk: str) -> list[int]:
        """Ids of a stretch of text without white space, remembered if it is short."""
        ids: list[int] = []
        for word in self._words.finditer(chunk):
            ids += self._bpe.encode(word.group()).ids
            if len(ids) >= self.settings.context_length:
                return ids
        if len(chunk) <= REMEMBERED_LENGTH:
            if len(self._remembered) >= REMEMBERED_WORDS:
                self._remembered.clear()
            self._remembered[chunk] = ids
        return ids


def decode(index: int, text: bytes, max_bytes: int) -> str:
    """Bytes to text, within the limit.

    Raises:
        TextError: too many bytes, or no UTF-8.
    """
    if len(text) > max_bytes:
        raise TextError(
            f"text[{index}]: {len(text)} bytes; at most {max_bytes} are allowed; "
            "send a shorter text, the model reads only its beginning"
        )
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TextError(
            f"text[{index}]: bytes that are not UTF-8 (0x{text[error.start]:02x} at offset {error.start}); "
            "UTF-8 is allowed; encode the text as UTF-8"
        ) from error


def basic_clean(text: str) -> str:
    """open_clip's `basic_clean` up to white space at the ends: ftfy, then HTML entities twice."""
    if text.isascii() and text.isprintable() and "&" not in text:
        return text
    fixed = _fix_untouched(text)
    if fixed is None:
        fixed = ftfy.fix_text(text)
    return html.unescape(html.unescape(fixed)) if "&" in fixed else fixed


def _fix_untouched(text: str) -> str | None:
    """What ftfy makes of a text in which it has nothing to do but quotes; None where it has more to do."""
    if _TOUCHED_BY_FTFY.search(text) or is_bad(text):
        return None
    fixed = text.translate(_QUOTES) if _CURLY.search(text) else text
    if not unicodedata.is_normalized("NFC", fixed) or (fixed != text and is_bad(fixed)):
        return None
    return fixed


def _canonicalize(text: str) -> str:
    return text.replace("_", " ").translate(_NO_PUNCTUATION).lower()


FOLD: dict[str, Callable[[str], str]] = {"lower": str.lower, "whitespace": str, "canonicalize": _canonicalize}


def _word_pattern(file: Path) -> str:
    """The pattern of words in the file; no word holds white space, so chunks between it are independent."""
    steps = (json.loads(file.read_text(encoding="utf-8")).get("pre_tokenizer") or {}).get("pretokenizers", [])
    for step in steps:
        if step["type"] == "Split" and step["behavior"] == "Removed" and step["invert"]:
            pattern: str = step["pattern"]["Regex"]
            if regex.search(pattern, " \t\n") is None:
                return pattern
    raise ValueError(
        f"{file} holds no pattern that keeps words and drops white space; a byte-level BPE that begins with "
        "such a Split is allowed; write the file with `tritonclip export`"
    )
