"""UTF-8 texts to token ids, as the checkpoint's own tokenizer makes them.

CLIP's byte-pair encoding gives the ids of open_clip's SimpleTokenizer, several times faster. Any other vocabulary
is a file of the `tokenizers` library, which holds all that stands around the words too.
"""

from __future__ import annotations

import json
import secrets
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import regex
from clip_text import CLEAN, FOLD, TextError, TextSettings, basic_clean, decode, place, settings_from
from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers

__all__ = ["ClipTokenizer", "HfTokenizer", "TextError", "TextSettings", "Tokens", "open_tokenizer", "settings_from"]

REMEMBERED_WORDS = 1 << 16
REMEMBERED_LENGTH = 64


class Tokens(NamedTuple):
    """The ids of some texts.

    Attributes:
        ids: int32 [B, L], L the smallest bucket that holds the longest text.
        truncated: bool [B, 1], whether the text was longer than the context.
    """

    ids: npt.NDArray[np.int32]
    truncated: npt.NDArray[np.bool_]


class Rows(NamedTuple):
    """The ids of some texts, each as long as its text, start and end included, and whether it was cut."""

    ids: list[list[int]]
    truncated: list[bool]


class Tokenizer(Protocol):
    """Texts to rows of ids."""

    def encode(self, texts: Sequence[bytes]) -> Tokens:
        """The ids of UTF-8 texts, padded; as `padded` of `rows`."""

    def rows(self, texts: Sequence[bytes], first: int = 0) -> Rows:
        """The ids of UTF-8 texts, the first of which is at the place `first` of its request.

        Raises:
            TextError: a text is too long or no UTF-8; the message begins with its index, `text[3]: `.
        """

    def padded(self, parts: Iterable[Rows]) -> Tokens:
        """All rows of a request, padded to one length."""


def open_tokenizer(file: Path, settings: TextSettings) -> Tokenizer:
    """The tokenizer of the kind that the settings name."""
    return HfTokenizer(file, settings) if settings.kind == "hf" else ClipTokenizer(file, settings)


class ClipTokenizer:
    """CLIP's byte-pair encoding: start, words, end, padding. The file holds vocabulary, merges and word pattern."""

    def __init__(self, file: Path, settings: TextSettings) -> None:
        self.settings = settings
        self._fold = FOLD[settings.clean]
        self._bpe = Library.from_file(str(file))
        self._words = regex.compile(_word_pattern(file))
        # The words are found here, with the engine that open_clip uses; the library only merges bytes.
        self._bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self._remembered: dict[str, list[int]] = {}

    def encode(self, texts: Sequence[bytes]) -> Tokens:
        """See `Tokenizer`."""
        return self.padded([self.rows(texts)])

    def padded(self, parts: Iterable[Rows]) -> Tokens:
        """See `Tokenizer`."""
        return _tokens(parts, self.settings)

    def rows(self, texts: Sequence[bytes], first: int = 0) -> Rows:
        """See `Tokenizer`."""
        settings = self.settings
        rows, truncated = [], []
        for index, text in enumerate(texts, first):
            with place(index):
                ids = self.words(decode(index, text, settings.max_bytes), settings.context_length - 1)
            truncated.append(len(ids) > settings.context_length - 2)
            rows.append([settings.sot_id, *ids[: settings.context_length - 2], settings.eot_id])
        return Rows(rows, truncated)

    def words(self, text: str, enough: int | None = None) -> list[int]:
        """The ids of a whole text, without start and end; of its beginning, once there are `enough`."""
        ids: list[int] = []
        for chunk in self._fold(basic_clean(text)).split():
            ids += self._remembered.get(chunk) or self._encode_chunk(chunk, enough)
            if enough is not None and len(ids) >= enough:
                break
        return ids

    def _encode_chunk(self, chunk: str, enough: int | None) -> list[int]:
        """Ids of a stretch of text without white space, remembered if it is short."""
        ids: list[int] = []
        for word in self._words.finditer(chunk):
            ids += self._bpe.encode(word.group()).ids
            if enough is not None and len(ids) >= enough:
                return ids
        if len(chunk) <= REMEMBERED_LENGTH:
            if len(self._remembered) >= REMEMBERED_WORDS:
                self._remembered.clear()
            self._remembered[chunk] = ids
        return ids


class HfTokenizer:
    """A file of the `tokenizers` library that cuts and pads to the context, as Hugging Face's fast tokenizers do.

    One difference from transformers: special tokens written in a text stay text.
    """

    def __init__(self, file: Path, settings: TextSettings) -> None:
        self.settings = settings
        self._clean = CLEAN[settings.clean]
        self._library = open_library(file)
        self._pads_left = _check_file(file, self._library, settings)
        self._library.no_padding()

    def encode(self, texts: Sequence[bytes]) -> Tokens:
        """See `Tokenizer`."""
        return self.padded([self.rows(texts)])

    def rows(self, texts: Sequence[bytes], first: int = 0) -> Rows:
        """See `Tokenizer`."""
        decoded = []
        for index, text in enumerate(texts, first):
            with place(index):
                decoded.append(self._clean(decode(index, text, self.settings.max_bytes)))
        encodings = self._library.encode_batch_fast(decoded)
        return Rows([encoding.ids for encoding in encodings], [bool(encoding.overflowing) for encoding in encodings])

    def padded(self, parts: Iterable[Rows]) -> Tokens:
        """See `Tokenizer`."""
        tokens = _tokens(parts, self.settings, pads_left=self._pads_left)
        if self.settings.zero_ids:
            tokens.ids[np.isin(tokens.ids, self.settings.zero_ids)] = 0
        return tokens


def portions(sizes: Sequence[int], most: int = 1 << 16) -> list[slice]:
    """Runs of texts of these bytes, of at most `most` together where one alone is not larger."""
    found, start, held = [], 0, 0
    for index, size in enumerate(sizes):
        if index > start and held + size > most:
            found.append(slice(start, index))
            start, held = index, 0
        held += size
    return [*found, slice(start, len(sizes))]


def open_library(file: Path) -> Library:
    """A tokenizer of the `tokenizers` library that takes special tokens in a text for text."""
    library = Library.from_file(str(file))
    if isinstance(library.model, models.Unigram):
        document = json.loads(file.read_text(encoding="utf-8"))
        _hide_special_pieces(document)
        library = Library.from_str(json.dumps(document))
    library.encode_special_tokens = True
    return library


def _hide_special_pieces(document: dict[str, Any]) -> None:
    """Unigram looks every piece up by its spelling; give special ones a spelling that nobody can write."""
    added = document["added_tokens"]
    hidden = {token["content"]: secrets.token_hex(16) for token in added if token["special"]}
    for token in added:
        token["content"] = hidden.get(token["content"], token["content"])
    for piece in document["model"]["vocab"]:
        piece[0] = hidden.get(piece[0], piece[0])


def _tokens(parts: Iterable[Rows], settings: TextSettings, *, pads_left: bool = False) -> Tokens:
    """Pad rows to the smallest bucket that holds the longest."""
    parts = list(parts)
    rows = [row for part in parts for row in part.ids]
    truncated = [was for part in parts for was in part.truncated]
    longest = max(map(len, rows), default=0)
    length = next(bucket for bucket in settings.buckets if bucket >= longest)
    padding = [settings.pad_id] * length
    flat: list[int] = []
    for row in rows:
        if pads_left:
            flat += padding[len(row) :]
        flat += row
        if not pads_left:
            flat += padding[len(row) :]
    # Several times faster than numpy's own reading of a list.
    ids = np.frombuffer(array("i", flat), np.int32).reshape(-1, length)
    return Tokens(ids, np.array(truncated, np.bool_).reshape(-1, 1))


def _check_file(file: Path, library: Library, settings: TextSettings) -> bool:
    """Whether the file pads on the left; refuse one that does not cut and pad as the settings say."""
    cut, pad = library.truncation or {}, library.padding or {}
    found = (cut.get("max_length"), pad.get("length"), pad.get("pad_id"))
    wanted = (settings.context_length, settings.context_length, settings.pad_id)
    if found != wanted:
        raise ValueError(
            f"{file} cuts to {found[0]}, pads to {found[1]} with the id {found[2]}; {wanted[0]}, {wanted[1]} and "
            f"{wanted[2]} are the checkpoint's; write the file with `tritonclip export`"
        )
    pads_left = bool(pad["direction"] == "left")
    if pads_left and len(settings.buckets) > 1:
        raise ValueError(
            f"{file} pads on the left, and buckets are {settings.buckets}; only the context length "
            f"{settings.context_length} is allowed then; set the parameter `buckets`"
        )
    return pads_left


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
