"""Texts that cost more than they look, by family: each grows to any number of bytes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

Grow = Callable[[int, random.Random], str]


def _repeated(piece: str) -> Grow:
    return lambda count, _: piece * max(count // len(piece.encode()), 1)


def _random_marks(count: int, chance: random.Random) -> str:
    return "".join(chance.choice("....!!??…。！？\"')]» \n") for _ in range(count // 2))


def _random_unicode(count: int, chance: random.Random) -> str:
    codes = (chance.randrange(0x110000) for _ in range(count // 3))
    return "".join(chr(code) for code in codes if not 0xD800 <= code < 0xE000)


def _mojibake(count: int, chance: random.Random) -> str:
    words = "".join(chance.choice("éüñçßøåœ") + "abc " for _ in range(count // 12))
    return words.encode().decode("latin-1")


FAMILIES: dict[str, Grow] = {
    "dots": _repeated("...."),
    "marks": _repeated("!?"),
    "quotes": _repeated(".\"')"),
    "random marks": _random_marks,
    "one letter": _repeated("a"),
    "spaces": _repeated(" "),
    "newlines": _repeated("\n"),
    "tabs and letters": _repeated("a\t"),
    "nested entities": _repeated("&amp;"),
    "digits of an entity": lambda count, _: "&#" + "9" * count,
    "hexadecimal entity": lambda count, _: "&#x" + "f" * count,
    "angle brackets": _repeated("<"),
    "special tokens": _repeated("<end_of_text>"),
    "combining marks": lambda count, _: "a" + "\u0301" * (count // 2),
    "joined emoji": _repeated("👩\u200d"),
    "ideographs": _repeated("中。"),
    "capital sharp s": _repeated("ẞİ"),
    "mojibake": _mojibake,
    "any code points": _random_unicode,
    "NUL": _repeated("a\x00"),
}
# Longer than the server takes, and not UTF-8: to be refused, and quickly.
BROKEN: dict[str, bytes] = {
    "ten megabytes": b"a" * 10_000_000,
    "cut in a character": "é".encode()[:1],
    "surrogate": b"\xed\xa0\x80",
    "overlong": b"\xc0\xaf",
    "latin-1": "café".encode("latin-1"),
}


def hostile_texts(seed: int, count: int, largest: int = 60_000) -> Iterator[tuple[str, bytes]]:
    """`count` texts of at most `largest` bytes and the name of their family; the same seed gives the same ones."""
    chance = random.Random(f"texts {seed}")
    families = list(FAMILIES.items())
    for number in range(count):
        name, grow = families[number % len(families)]
        size = int(largest ** chance.uniform(0.2, 1.0))
        yield name, grow(size, chance).encode()[:largest]
