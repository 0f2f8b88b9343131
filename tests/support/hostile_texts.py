"""Texts that are made to cost: families of pathological runs, each of any length in bytes."""

from __future__ import annotations

import random


def fill(unit: str, size: int) -> str:
    """`unit` again and again, at most `size` bytes of UTF-8."""
    return unit * (size // len(unit.encode()))


def hostile(size: int) -> dict[str, str]:
    """One text a family, of at most `size` bytes and nearly that."""
    rng = random.Random(0)
    units = {
        "dots": ".",
        "question marks": "!?",
        "ellipses": "…",
        "quotes": '"',
        "curly quotes": "“”",
        "dots and quotes": '."',
        "full stops of CJK": "。",
        "one letter": "x",
        "blanks and letters": "a ",
        "lines": "\n",
        "lines of letters": "a\n",
        "lines of Windows": "\r\n",
        "lines of code points": "\u2028",
        "tabs": "\t",
        "no-break spaces": "\xa0",
        "ampersands": "&",
        "entities": "&amp;",
        "entities in four layers": "&amp;amp;amp;amp;",
        "entities of marks": "&#x301;&#x323;",
        "entities that are none": "&notit",
        "long numbers": "&#" + "1" * 4000 + ";",
        "tags": "<a>",
        "brackets": "<",
        "joined emoji": "\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "emoji": "🐶",
        "flags": "🇩🇪",
        "mojibake": "Ã©",
        "mojibake of quotes": "Ã©â€™вЂ™",
        "mojibake of two encodings": "Ã©x’Â ",
        "mojibake of NUL": "\xc0\x80",
        "mojibake of surrogates": "\xed\xa0\xbd\xed\xb8\x80",
        "spaces in mojibake": "Ã ",
        "euros": "â€",
        "controls of 8 bits": "\x85",
        "holes of Windows": "\x9d",
        "mojibake of words": "aÂ ",
        "boxes": "│é",
        "ligatures": "ﬁﬃ",
        "wide letters": "Ａ",
        "narrow Hangul": "ﾡ",
        "controls": "\x01",
        "byte order marks": "\ufeff",
        "terminal escapes": "\x1b[1;1",
        "NUL": "\x00",
        "dotted I": "İ",
        "one sign of 18 letters": "ﷺ",
        "apostrophes": "'s",
        "digits": "1",
        "special tokens": "<|endoftext|>",
        "dashes": "-",
        "replacements": "�",
        "sharp s": "ß",
        "underscores": "_",
        "sentences": "A dog barks. ",
        "words of 200 letters": "a" * 200 + " ",
        "dense and sparse": "a" * 1000 + ". " + "🐶" * 18 + ". ",
        "dense sentences": "𒐫" * 250 + ". ",
    }
    return {
        **{name: fill(unit, size) for name, unit in units.items()},
        "dots, then quotes": fill(".", size // 2) + fill('"', size // 2),
        "random letters": "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=size)),
        "random signs": "".join(chr(rng.randrange(0x4E00, 0x9FFF)) for _ in range(size // 3)),
        "blanks": "a" + " " * (size - 2) + "b",
        "marks of one class": "a" + fill("\u0301", size - 1),
        "marks out of order": "a" + fill("\u0301\u0323", size - 1),
        "marks that are two": "a" + fill("\u0f73", size - 1),
        "a long number": "&#" + "1" * (size - 2),
        "a long number of 16": "&#x" + "1" * (size - 3),
        "a long name": "&" + "a" * (size - 1),
        "digits of an escape": "\033[" + "1" * (size - 2),
    }


def tangled(size: int) -> dict[str, str]:
    """Texts that ftfy mends one layer at a time, and that are refused therefore."""
    return {
        "entities in entities": "&" + fill("amp;", size - 1),
        "numbers in numbers": "&" + fill("#38;", size - 1),
        "many entities in entities": fill("&" + "amp;" * 64, size),
        "letters in letters": fill("Â", size - 2) + "©",
        "many letters in letters": fill("Â" * 30 + "© ", size),
        "lines of letters in letters": fill("Â" * 12 + "©\n", size),
    }
