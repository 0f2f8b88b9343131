"""The served tokenizer against open_clip's SimpleTokenizer, id by id."""

from __future__ import annotations

import sys
from pathlib import Path

import ftfy
import numpy as np
import pytest
from tokenizers import Tokenizer

from sample_texts import captions, fuzzed, mixed
from tritonclip_export.checkpoints.tokenizer_file import write_tokenizer
from tritonclip_export.errors import CheckpointError
from tritonclip_export.frameworks import open_clip

sys.path.append(str(Path(__file__).parents[2] / "model_repository" / "tokenizer" / "1"))

import clip_text
import clip_tokenize
from clip_tokenize import ClipTokenizer, TextError, settings_from

SOT, EOT = 49406, 49407
PARAMETERS = {
    "context_length": "77",
    "buckets": "16,32,77",
    "pad_id": "0",
    "sot_id": str(SOT),
    "eot_id": str(EOT),
    "clean": "lower",
    "max_bytes": "65536",
}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """tokenizer.json, as the exporter writes it."""
    path = tmp_path_factory.mktemp("tokenizer") / "1" / "tokenizer.json"
    write_tokenizer(path, open_clip.SimpleTokenizer())
    return path


@pytest.fixture(scope="module")
def tokenizer(file):
    return ClipTokenizer(file, settings_from(PARAMETERS))


def differing(tokenizer: ClipTokenizer, reference, texts: list[str]) -> list[str]:
    """The texts whose ids differ, in requests of 50."""
    wrong = []
    for start in range(0, len(texts), 50):
        part = texts[start : start + 50]
        theirs = reference(part).numpy()
        ours = np.zeros_like(theirs)
        ids = tokenizer.encode([text.encode() for text in part]).ids
        ours[:, : ids.shape[1]] = ids
        wrong += [text for text, same in zip(part, (ours == theirs).all(axis=1), strict=True) if not same]
    return wrong


@pytest.mark.parametrize("clean", ["lower", "whitespace", "canonicalize"])
def test_ids_are_open_clips_on_fuzzed_texts(file, clean):
    reference = open_clip.SimpleTokenizer(clean=clean)
    tokenizer = ClipTokenizer(file, settings_from(PARAMETERS | {"clean": clean}))
    count = 10_000 if clean == "lower" else 2_000
    assert differing(tokenizer, reference, fuzzed(count) + captions(200) + mixed(200)) == []


def test_ids_are_open_clips_for_every_character_of_the_basic_plane(file):
    characters = [chr(code) for code in range(0x10000) if not 0xD800 <= code < 0xE000]
    texts = [
        "".join(f"a{character}b'{character} " for character in characters[at : at + 6]) for at in range(0, 63488, 6)
    ]
    long = open_clip.SimpleTokenizer(context_length=200)
    wide = ClipTokenizer(file, settings_from(PARAMETERS | {"context_length": "200", "buckets": "200"}))
    assert differing(wide, long, texts) == []


def test_ftfy_is_left_out_only_where_it_changes_nothing_but_quotes():
    for text in [*map(chr, range(0x80)), *map(chr, range(0xE000, 0x11000)), *fuzzed(4000, seed=3), *mixed(300)]:
        quick = clip_text._fix_untouched(text)
        assert quick is None or quick == ftfy.fix_text(text)
    assert all(clip_text._fix_untouched(text) is not None for text in mixed(300) if "&" not in text)


@pytest.mark.parametrize(
    "literal", ["<end_of_text>", "<start_of_text>", "a <end_of_text> b", "<|endoftext|>", "<END_OF_TEXT>"]
)
def test_special_tokens_in_a_text_stay_text(tokenizer, literal):
    (row,) = tokenizer.encode([literal.encode()]).ids.tolist()
    assert row.count(EOT) == 1
    assert row.count(SOT) == 1
    assert row.index(SOT) == 0
    assert not any(row[row.index(EOT) + 1 :])


def test_special_tokens_in_a_text_are_what_open_clip_does_differently(tokenizer):
    theirs = open_clip.SimpleTokenizer()(["a <end_of_text> b"])[0].tolist()
    assert theirs.count(EOT) == 2


@pytest.mark.parametrize(
    ("words", "length"), [(0, 16), (1, 16), (14, 16), (15, 32), (30, 32), (31, 77), (75, 77), (500, 77)]
)
def test_rows_have_the_smallest_bucket_that_holds_the_longest_text(tokenizer, words, length):
    ids = tokenizer.encode([b"", b"dog " * words]).ids
    assert ids.shape == (2, length)
    assert ids.dtype == np.int32
    assert ids[1].tolist().index(EOT) == min(words + 1, 76)


def test_long_texts_are_cut_as_open_clip_cuts_them(tokenizer):
    texts = ["dog " * count for count in (74, 75, 76, 77, 300)] + ["a,b;" * 300, "日本" * 300, "x" * 5000]
    assert differing(tokenizer, open_clip.SimpleTokenizer(), texts) == []


def test_an_empty_text_is_a_text(tokenizer):
    assert tokenizer.encode([b""]).ids.tolist() == [[SOT, EOT, *[0] * 14]]


def test_padding_is_the_models_own(file):
    tokenizer = ClipTokenizer(file, settings_from(PARAMETERS | {"pad_id": "7"}))
    assert tokenizer.encode([b"dog"]).ids[0, 3:].tolist() == [7] * 13


def test_memory_of_words_is_bounded(file, monkeypatch):
    monkeypatch.setattr(clip_tokenize, "REMEMBERED_WORDS", 100)
    tokenizer = ClipTokenizer(file, settings_from(PARAMETERS))
    assert differing(tokenizer, open_clip.SimpleTokenizer(), [f"word{n} {n}" for n in range(500)]) == []
    tokenizer.encode([b"y" * 60_000])
    assert len(tokenizer._remembered) <= 100
    assert max(map(len, tokenizer._remembered)) <= clip_tokenize.REMEMBERED_LENGTH


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"caf\xe9", r"^text\[1\]: bytes that are not UTF-8 \(0xe9 at offset 3\); UTF-8 is allowed; encode"),
        (b"\xed\xa0\x80", r"^text\[1\]: bytes that are not UTF-8"),
        (b"x" * 65_537, r"^text\[1\]: 65537 bytes; at most 65536 are allowed; send a shorter"),
    ],
)
def test_a_bad_text_is_named_with_its_index(tokenizer, text, message):
    with pytest.raises(TextError, match=message):
        tokenizer.encode([b"good", text])


@pytest.mark.parametrize(
    ("name", "value"), [("clean", "upper"), ("buckets", "16,32"), ("buckets", "32,16,77"), ("buckets", "77,77")]
)
def test_settings_that_cannot_work_are_refused(name, value):
    with pytest.raises(ValueError, match=f"set the parameter `{name}`"):
        settings_from(PARAMETERS | {name: value})


def test_a_tokenizer_of_another_kind_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"is a dict; open_clip's SimpleTokenizer can be served; choose"):
        write_tokenizer(tmp_path / "tokenizer.json", {})


def test_a_file_without_a_word_pattern_is_refused(tmp_path, file):
    bare = tmp_path / "tokenizer.json"
    bare.write_text(file.read_text().replace('"Split"', '"Splice"'))
    with pytest.raises(ValueError, match="holds no pattern"):
        clip_tokenize._word_pattern(bare)


def test_the_file_alone_tokenizes_captions_too(file):
    library, reference = Tokenizer.from_file(str(file)), open_clip.SimpleTokenizer()
    for text in captions(50):
        assert library.encode(text.lower()).ids == reference.encode(text)


def test_texts_in_parts_are_the_same_as_together(tokenizer):
    texts = [text.encode() for text in [*captions(20), *mixed(20), "x" * 3000]]
    together = tokenizer.encode(texts)
    parts = clip_tokenize.portions([len(text) for text in texts], 500)
    apart = tokenizer.padded(tokenizer.rows(texts[part], part.start) for part in parts)

    np.testing.assert_array_equal(apart.ids, together.ids)
    np.testing.assert_array_equal(apart.truncated, together.truncated)
    assert len(parts) > 3
    with pytest.raises(TextError, match=r"^text\[7\]: bytes that are not UTF-8"):
        tokenizer.rows([b"good", b"\xff"], 6)


@pytest.mark.parametrize(
    ("sizes", "found"),
    [([0], [1]), ([3, 3, 3], [3]), ([5, 5, 1], [2, 1]), ([20, 1, 20], [1, 1, 1]), ([1] * 25, [10, 10, 5])],
)
def test_portions_are_of_ten_bytes_at_most(sizes, found):
    parts = clip_tokenize.portions(sizes, 10)

    assert [len(sizes[part]) for part in parts] == found
    assert [size for part in parts for size in sizes[part]] == sizes
