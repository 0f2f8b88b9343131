"""Encoded items and the requests' worth of them: chunks bounded in number and in bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .errors import InvalidItemError


@dataclass(frozen=True)
class Item:
    """One thing to embed, as it travels.

    Attributes:
        index: its place in what the user gave.
        data: an encoded image, or UTF-8.
        source: what the user calls it, for messages.
    """

    index: int
    data: bytes
    source: str | None = None


@dataclass(frozen=True)
class Chunk:
    """The items of one request."""

    items: tuple[Item, ...]

    @contextmanager
    def located(self, kind: type[InvalidItemError]) -> Iterator[None]:
        """Give an error about item i of this request the item's place in what the user gave."""
        try:
            yield
        except kind as error:
            if error.index >= len(self.items):
                raise
            item = self.items[error.index]
            raise type(error)(item.index, error.reason, item.source) from error


def chunked(items: Iterable[Item], max_items: int, max_bytes: int) -> Iterator[Chunk]:
    """Cut items into chunks, lazily: nothing beyond the item that opens the next chunk is held.

    An item larger than `max_bytes` travels alone; whether that is too large is the server's to say.
    """
    held: list[Item] = []
    size = 0
    for item in items:
        if held and (len(held) == max_items or size + len(item.data) > max_bytes):
            yield Chunk(tuple(held))
            held, size = [], 0
        held.append(item)
        size += len(item.data)
    if held:
        yield Chunk(tuple(held))
