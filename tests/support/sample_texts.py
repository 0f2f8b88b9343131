"""Texts that make tokenizers differ: mojibake, entities, scripts, controls, case, and plain captions."""

from __future__ import annotations

import random

FRAGMENTS = (
    *("&amp;", "&lt;", "&eacute;", "&#x27;", "&amp;amp;", "&", "&&", "#", "<", "<b>", "_", "{}", "hello_world"),
    *("’", "“", "”", "…", "ﬁ", "ﬃ", "ﬆ", "Ａ", "½", "Ⅷ", "™", "ℌ", "K", "ſ", "ß", "ẞ", "İ", "ı", "ǅ", "\u0345"),
    *("\u200d", "👨‍👩‍👧", "🇩🇪", "🐶", "é", "e\u0301", "Σ", "ΟΔΟΣ ", "ς", "中", "日本", "한글", "가", "ไทย", "हिन्दी"),
    *("١٢", "Ã©", "â€™", "å", "Ã ", "Â", "\x00", "\x1b[31m", "\x7f", "\x85", "\xa0", "\u3000", "\u2028", "\u202e"),
    *("\n", "\r\n", "\t", "\ufeff", "'S", "'ll", "'RE", "'ſ", "'", "''", "don't", "cafe", "photo", "of", "a", "dog"),
    *("12345", "x" * 70, "ab" * 40),
)
SUBJECTS = ("two dogs", "an old red barn", "a Boeing 747-400", "three children", "the harbour", "a chef's knife")
ACTIONS = ("running along", "parked beside", "reflected in", "painted above", "seen from", "waiting near")
PLACES = ("the beach at sunset", "a snow-covered mountain", "an empty street, 1987", "St. Mark's square", "a lake")
WORLD = (
    *(
        "ein größeres Haus am Straßenrand",
        "猫がソファーで寝ている 🐱",
        "фотография белой собаки на пляже",
        "東京の夜景",
    ),
    *("l’été à la plage, 25°C ☀️", "“naïve” résumé…", "un niño montando en bicicleta", "صورة قطة على الأريكة"),
    *("공원에서 노는 강아지", "Ένας σκύλος στην παραλία", "café au lait – table en bois", "a dog 🐶 and a cat 🐱"),
    *("R&amp;D laboratory, 2&nbsp;pm", "een fiets bij de gracht", "çocuklar parkta oynuyor", "kočka na střeše"),
)


def fuzzed(count: int, seed: int = 0) -> list[str]:
    """Texts of fragments, ASCII, other scripts and any code point at all."""
    rng = random.Random(seed)
    return ["".join(_piece(rng) for _ in range(rng.randint(0, 14))) for _ in range(count)]


def captions(count: int, seed: int = 0) -> list[str]:
    """English captions of 7 to 20 words."""
    rng = random.Random(seed)
    return [_caption(rng) for _ in range(count)]


def mixed(count: int, seed: int = 0) -> list[str]:
    """Captions in many scripts, every second one with English around it."""
    rng = random.Random(seed)
    return [_world(rng) for _ in range(count)]


def _caption(rng: random.Random) -> str:
    number = rng.randint(1, 999)
    return f"A photo of {rng.choice(SUBJECTS)} {rng.choice(ACTIONS)} {rng.choice(PLACES)}, picture {number}."


def _world(rng: random.Random) -> str:
    text = rng.choice(WORLD)
    return f"{text} {rng.randint(1, 999)}" if rng.random() < 0.5 else f"A photo: {text}, {rng.choice(PLACES)}"


def _piece(rng: random.Random) -> str:
    kind, gap = rng.random(), " " if rng.random() < 0.4 else ""
    if kind < 0.6:
        return rng.choice(FRAGMENTS) + gap
    if kind < 0.75:
        return chr(rng.randint(0x20, 0x7E)) + gap
    first, last = rng.choice(((0xA0, 0x24F), (0x370, 0x52F), (0x2000, 0x2BFF), (0x4E00, 0x9FFF), (0xF900, 0x10FFFF)))
    return chr(rng.randint(first, last)) + gap
