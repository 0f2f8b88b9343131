"""Texts as they travel: UTF-8."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from .errors import InvalidInputError, InvalidTextError
from .items import Item

TextInput: TypeAlias = str | bytes


def encode_texts(texts: Iterable[TextInput]) -> list[Item]:
    """Encode every text.

    Args:
        texts: str, or bytes that are UTF-8 already.

    Raises:
        InvalidInputError: not a list of texts, or an empty one.
        InvalidTextError: an item that is no text, or not UTF-8.
    """
    if isinstance(texts, (str, bytes)) or not isinstance(texts, Iterable):
        raise InvalidInputError(f"{_shown(texts)} given as texts; give a list of texts, for example ['a cat']")
    items = [Item(index, _encode(index, text), _shown(text)) for index, text in enumerate(texts)]
    if not items:
        raise InvalidInputError("no texts given; give at least one")
    return items


def check_labels(labels: Iterable[str]) -> list[str]:
    """The labels as a list.

    Raises:
        InvalidInputError: none, an empty one, or one twice: it would take its probability from itself.
        InvalidTextError: one that UTF-8 cannot hold.
    """
    if isinstance(labels, (str, bytes)) or not isinstance(labels, Iterable):
        raise InvalidInputError(f"{_shown(labels)} given as labels; give a list of texts, for example ['cat', 'dog']")
    checked: dict[str, None] = {}
    for index, label in enumerate(labels):
        if not isinstance(label, str) or not label.strip():
            raise InvalidInputError(f"labels[{index}] is {label!r}; give a text that is not empty")
        if label in checked:
            raise InvalidInputError(f"labels[{index}] is {label!r} again; give every label once")
        checked[label] = None
    if not checked:
        raise InvalidInputError("no labels given; give at least one")
    encode_texts(checked)
    return list(checked)


def _encode(index: int, text: object) -> bytes:
    if not isinstance(text, (str, bytes)):
        raise InvalidTextError(index, f"{type(text).__name__} given; give a str, or bytes in UTF-8")
    try:
        # Lone surrogates in a str are as little UTF-8 as stray bytes.
        return (text if isinstance(text, str) else text.decode()).encode()
    except (UnicodeEncodeError, UnicodeDecodeError) as error:
        raise InvalidTextError(index, f"{_shown(text)} is not valid UTF-8 ({error.reason}); give UTF-8") from error


def _shown(text: object) -> str:
    shown = repr(text)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
