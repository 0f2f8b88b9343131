"""No text costs more than its length allows: every family of hostile texts, in work and in time."""

from __future__ import annotations

import html
import random
import sys
import time
import unicodedata
from pathlib import Path

import ftfy
import pytest

from hostile_texts import hostile, tangled
from sample_texts import fuzzed, mixed
from tritonclip_export.checkpoints.tokenizer_file import write_tokenizer
from tritonclip_export.frameworks import open_clip

sys.path.append(str(Path(__file__).parents[2] / "model_repository" / "tokenizer" / "1"))
sys.path.append(str(Path(__file__).parents[2] / "model_repository" / "split_text" / "1"))

import clip_mend
import clip_text
from clip_split import Splitter
from clip_tokenize import ClipTokenizer, TextError, TextSettings

FAMILIES = list(hostile(1000))
TANGLED = list(tangled(1000))
# How often splitting may look at a character; without bounds it was thousands of times.
MOST_LOOKS = 20
SETTINGS = TextSettings(77, (16, 32, 77), 0, 49406, 49407, "lower", 65536)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    write_tokenizer(path, open_clip.SimpleTokenizer())
    return path


@pytest.fixture(scope="module")
def tokenizer(file):
    return ClipTokenizer(file, SETTINGS)


class Counting(Splitter):
    """Counts the characters that are cleaned or tokenized."""

    work = 0

    def _fits(self, text: str) -> bool:
        self.work += len(text)
        return super()._fits(text)

    def _encode(self, text: str):
        self.work += len(text)
        return super()._encode(text)


@pytest.fixture(scope="module")
def splitter(file):
    return Counting(file, SETTINGS)


def work(splitter: Counting, text: str) -> int:
    splitter.work = 0
    splitter.split([text.encode()])
    return splitter.work


@pytest.mark.parametrize("size", [4096, 16_384])
def test_splitting_looks_at_every_character_a_few_times(splitter, size):
    texts = hostile(size)

    most = {family: work(splitter, text) / len(text) for family, text in texts.items()}
    assert max(most.values()) < MOST_LOOKS, most


def mended(text: str) -> str | None:
    try:
        return clip_mend.fix_text(text)
    except clip_mend.TangledError:
        return None


def test_texts_are_mended_as_ftfy_mends_them():
    rng = random.Random(0)
    damaged = [_damaged(rng) for _ in range(1500)]
    texts = [*hostile(600).values(), *fuzzed(1000, seed=5), *mixed(200), *damaged]
    found = [mended(text) for text in texts]

    assert [text for text, ours in zip(texts, found, strict=True) if ours not in (None, ftfy.fix_text(text))] == []
    assert found.count(None) <= len(texts) // 1000


def _damaged(rng: random.Random) -> str:
    """A short text of what ftfy has to do with, decoded wrongly in places, some of them twice."""
    alphabet = "ÃÂâ€©™é вЂ™ñ&amp;&lt;<\n\r\x85\x9dﬁＡ“”\u0301\u0323\u0344\u0f73\ufffd?\x1aŒœàí½À\x80\xa0°×²aAbzZ.!1;#x"
    text = "".join(rng.choices(alphabet, k=rng.randint(1, 30)))
    for _ in range(rng.randint(0, 2)):
        start, end = sorted(rng.randint(0, len(text)) for _ in range(2))
        wrong = text[start:end].encode().decode(rng.choice(["latin-1", "cp1252", "cp1251", "mac_roman"]), "replace")
        text = text[:start] + wrong + text[end:]
    return text


@pytest.mark.parametrize("family", TANGLED)
def test_what_would_be_mended_for_ever_is_refused(tokenizer, splitter, family):
    text = tangled(8000)[family].encode()

    for refuse in (tokenizer.encode, splitter.split):
        with pytest.raises(TextError, match=r"^text\[1\]: HTML entities or wrongly decoded letters are nested .* send"):
            refuse([b"good", text])


def test_a_few_layers_are_undone():
    for depth in range(1, 9):
        assert clip_mend.fix_text("&" + "amp;" * depth + "eacute;") == "é"
        assert clip_mend.fix_text("Â" * depth + "© 2024 ") == "© 2024 "


def test_long_runs_of_marks_are_normalized_as_unicode_says():
    rng = random.Random(0)
    marks = [chr(code) for code in range(0x300, 0x2000) if unicodedata.category(chr(code)) == "Mn"]
    for _ in range(50):
        run = "".join(rng.choices([*marks, "\u0344", "\u0f73", "\u0340"], k=rng.randint(64, 300)))
        text = "a" + run + "é"
        assert clip_text.basic_clean(text) == ftfy.fix_text(text)


@pytest.mark.parametrize(
    "digits", ["1" * 5000, "0" * 5000 + "65", "0" * 5000, "0" * 4999 + "9" * 5000, "1" * 999, "1" * 1000, "00065"]
)
@pytest.mark.parametrize("end", [";", "", " b", "x"])
def test_numbers_of_any_length_are_what_html_says(digits, end):
    text = f"a &#{digits}{end}"
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        expected = html.unescape(html.unescape(ftfy.fix_text(text)))
    finally:
        sys.set_int_max_str_digits(limit)

    assert clip_text.basic_clean(text) == expected


def seconds(function, text: str) -> float:
    """The least of some runs, in this thread's own time, for the machine is shared."""
    taken = []
    for _ in range(3):
        began = time.thread_time()
        function([text.encode()])
        taken.append(time.thread_time() - began)
    return min(taken)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_time_grows_with_the_length(file, splitter, family):
    tokenizer = ClipTokenizer(file, SETTINGS)
    for function in (tokenizer.encode, splitter.split):
        short, long = (seconds(function, hostile(size)[family]) for size in (16_000, 64_000))
        assert long < 1.5
        assert long < 8 * max(short, 0.01)


@pytest.mark.slow
@pytest.mark.parametrize("family", TANGLED)
def test_a_refusal_takes_no_longer(tokenizer, family):
    began = time.thread_time()
    with pytest.raises(TextError):
        tokenizer.encode([tangled(65_000)[family].encode()])
    assert time.thread_time() - began < 1.5
