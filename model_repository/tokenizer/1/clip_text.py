"""Texts before they become token ids: the checkpoint's settings, UTF-8, and the cleaning that it was trained with.

The cleaning is open_clip's, with ftfy left out where it provably changes nothing.
"""

from __future__ import annotations

import html
import re
import string
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import clip_mend
from ftfy.badness import is_bad

_QUOTES = dict.fromkeys((0x02BC, *range(0x2018, 0x201C)), "'") | dict.fromkeys(range(0x201C, 0x2020), '"')
_CURLY = re.compile("[" + "".join(map(chr, _QUOTES)) + "]")
_TOUCHED_BY_FTFY = re.compile(f"[&\n{clip_mend.TOUCHED}]")
# Python refuses to read numbers of more than 4300 digits.
_LONG_NUMBER = re.compile(r"&#[0-9]{1000,}")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class TextError(ValueError):
    """A text that cannot be tokenized: what was given; what is allowed; what to do."""


@dataclass(frozen=True)
class TextSettings:
    """What the tokenizer must know of the checkpoint.

    Attributes:
        context_length: the longest row of ids, start and end included.
        buckets: the row lengths that are made, ascending; the last is `context_length`.
        clean: what is done to a text before: open_clip's lower, whitespace or canonicalize; none; or punctuation.
        max_bytes: the longest text, in bytes of UTF-8.
        kind: clip for CLIP's own byte-pair encoding, hf for a complete file of the `tokenizers` library.
        zero_ids: ids that become 0 once a text is tokenized.
    """

    context_length: int
    buckets: tuple[int, ...]
    pad_id: int
    sot_id: int
    eot_id: int
    clean: str
    max_bytes: int
    kind: str = "clip"
    zero_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in CLEANINGS:
            raise ValueError(f"kind is {self.kind!r}; {', '.join(CLEANINGS)} are allowed; set the parameter `kind`")
        allowed = CLEANINGS[self.kind]
        if self.clean not in allowed:
            raise ValueError(
                f"clean is {self.clean!r}; {', '.join(allowed)} are allowed for kind {self.kind}; "
                "set the parameter `clean`"
            )
        if list(self.buckets) != sorted(set(self.buckets)) or self.buckets[-1:] != (self.context_length,):
            raise ValueError(
                f"buckets are {self.buckets}; ascending lengths that end with the context length "
                f"{self.context_length} are allowed; set the parameter `buckets`"
            )


def settings_from(parameters: Mapping[str, str]) -> TextSettings:
    """Read the parameters of config.pbtxt, all of them strings."""
    numbers = ("context_length", "pad_id", "sot_id", "eot_id", "max_bytes")
    return TextSettings(
        buckets=_integers(parameters["buckets"]),
        clean=parameters["clean"],
        kind=parameters.get("kind", "clip"),
        zero_ids=_integers(parameters.get("zero_ids", "")),
        **{name: int(parameters[name]) for name in numbers},
    )


def _integers(numbers: str) -> tuple[int, ...]:
    return tuple(int(number) for number in numbers.split(",") if number)


def check_size(index: int, size: int, max_bytes: int) -> None:
    """Raise `TextError` if a text of `size` bytes is too long."""
    if size > max_bytes:
        raise TextError(
            f"text[{index}]: {size} bytes; at most {max_bytes} are allowed; send a shorter text, the model reads only "
            "its beginning, or raise --max-text-bytes of `tritonclip configure`"
        )


def decode(index: int, text: bytes, max_bytes: int) -> str:
    """Bytes to text, within the limit.

    Raises:
        TextError: too many bytes, or no UTF-8.
    """
    check_size(index, len(text), max_bytes)
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TextError(
            f"text[{index}]: bytes that are not UTF-8 (0x{text[error.start]:02x} at offset {error.start}); "
            "UTF-8 is allowed; encode the text as UTF-8"
        ) from error


@contextmanager
def place(index: int) -> Iterator[None]:
    """Give an error of the cleaning the text's place in its request."""
    try:
        yield
    except clip_mend.TangledError as error:
        raise TextError(f"text[{index}]: {error}") from error


def basic_clean(text: str) -> str:
    """open_clip's `basic_clean` up to white space at the ends: ftfy, then HTML entities twice.

    Raises:
        clip_mend.TangledError: ftfy would have to mend it layer by layer.
    """
    if text.isascii() and text.isprintable() and "&" not in text:
        return text
    fixed = _fix_untouched(text)
    if fixed is None:
        fixed = clip_mend.fix_text(text)
    return _unescape(_unescape(fixed)) if "&" in fixed else fixed


def _unescape(text: str) -> str:
    """`html.unescape`, with numbers of any length: from eight digits on, HTML has U+FFFD for all of them."""
    return html.unescape(_LONG_NUMBER.sub(lambda number: f"&#{number.group()[2:].lstrip('0')[:8] or 0}", text))


def _fix_untouched(text: str) -> str | None:
    """What ftfy makes of a text in which it has nothing to do but quotes; None where it has more to do."""
    if _TOUCHED_BY_FTFY.search(text) or is_bad(text) or clip_mend.long_runs_of_marks(text):
        return None
    fixed = text.translate(_QUOTES) if _CURLY.search(text) else text
    if not unicodedata.is_normalized("NFC", fixed) or (fixed != text and is_bad(fixed)):
        return None
    return fixed


def _canonicalize(text: str) -> str:
    return text.replace("_", " ").translate(_NO_PUNCTUATION).lower()


def _remove_punctuation(text: str) -> str:
    """What transformers' SiglipTokenizer does before it looks words up."""
    return text.lower().translate(_NO_PUNCTUATION)


def _collapsed(fold: Callable[[str], str]) -> Callable[[str], str]:
    return lambda text: " ".join(fold(text).split())


# What follows `basic_clean` where the words are cut at white space anyway.
FOLD: dict[str, Callable[[str], str]] = {"lower": str.lower, "whitespace": str, "canonicalize": _canonicalize}
# Everything that is done to a text whose white space counts.
CLEAN: dict[str, Callable[[str], str]] = {
    **{name: _collapsed(lambda text, fold=fold: fold(basic_clean(text))) for name, fold in FOLD.items()},
    "none": str,
    "punctuation": _collapsed(_remove_punctuation),
}
CLEANINGS = {"clip": tuple(FOLD), "hf": tuple(CLEAN)}
