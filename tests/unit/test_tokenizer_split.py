"""Long texts cut into chunks: each fits by the served tokenizer's own count, and nothing is lost."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest

import local_tokenizers
from sample_texts import captions, fuzzed, mixed
from tritonclip_export.checkpoints.tokenization import ClipBpe, HfTokenizer

sys.path.append(str(Path(__file__).parents[2] / "model_repository" / "tokenizer" / "1"))
sys.path.append(str(Path(__file__).parents[2] / "model_repository" / "split_text" / "1"))

import clip_split
import clip_tokenize
from clip_split import Splitter
from clip_tokenize import TextError, TextSettings

CONTEXT = 24
SENTENCES = [
    "The harbour was quiet at 3.5 a.m. on a cold day.",
    "“Who is there?”",
    "A dog, of course!",
    "It barked twice.",
]
PROSE = " ".join(SENTENCES * 4)
UNBROKEN = {
    "Chinese": "杰尼龟妙蛙种子小火龙皮卡丘" * 30,
    "one word": "photograph" * 60,
    "one letter": "x" * 4000,
    "emoji": "👨‍👩‍👧🐶" * 80,
    "ligatures": "ﬁﬃ" * 200,
    "mojibake": "Ã©" * 300,
    "entities": "&amp;" * 200,
    "spaces": "a" + " " * 9000 + "b " * 40,
}
TEXTS = [
    PROSE,
    *UNBROKEN.values(),
    *(" ".join(captions(8, seed)) for seed in range(10)),
    *(" ".join(mixed(10, seed)) for seed in range(20)),
    *(" ".join(fuzzed(12, seed)) for seed in range(40)),
]


@pytest.fixture(scope="module", params=["clip", *local_tokenizers.KINDS])
def pair(request, tmp_path_factory):
    """A splitter, and the tokenizer whose context it must keep."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "clip":
        exported = ClipBpe(CONTEXT)
    else:
        size = local_tokenizers.KINDS[request.param](folder)
        exported = HfTokenizer(str(folder), CONTEXT)
    file = folder / "served" / "tokenizer.json"
    exported.write(file)
    spec = exported.spec(49408 if request.param == "clip" else size, "eos", any_length=False)
    names = ("context_length", "buckets", "pad_id", "sot_id", "eot_id", "clean", "kind", "zero_ids")
    settings = TextSettings(**{name: getattr(spec, name) for name in names}, max_bytes=65536)
    return Splitter(file, settings), clip_tokenize.open_tokenizer(file, settings)


def solid(text: str) -> str:
    return "".join(text.split())


def test_every_chunk_fits_and_nothing_is_lost(pair):
    splitter, tokenizer = pair
    chunks, owners = splitter.split([text.encode() for text in TEXTS])

    assert not tokenizer.encode(chunks).truncated.any()
    assert owners == sorted(owners)
    for index, text in enumerate(TEXTS):
        own = [chunk.decode() for chunk, owner in zip(chunks, owners, strict=True) if owner == index]
        assert solid("".join(own)) == solid(text)
        assert "" not in own


def test_a_text_that_fits_is_one_chunk_as_it_stands(pair):
    splitter, tokenizer = pair
    texts = [b"", b" ", b"  two   spaces ", b"One. Two.\nThree!", "e\u0301 é".encode()]

    assert not tokenizer.encode(texts).truncated.any()
    assert splitter.split(texts) == (texts, [0, 1, 2, 3, 4])


def test_a_text_is_split_only_if_it_would_be_cut(pair):
    splitter, tokenizer = pair
    texts = [b"dog " * count for count in range(1, 40)]
    _, owners = splitter.split(texts)

    assert (np.bincount(owners) > 1).tolist() == tokenizer.encode(texts).truncated.ravel().tolist()


def test_chunks_are_filled_greedily(pair):
    splitter, tokenizer = pair
    chunks, _ = splitter.split([b"a dog " * 200])

    joined = [b" ".join(two) for two in itertools.pairwise(chunks)]
    assert tokenizer.encode(joined).truncated.all()
    # One word more would be one too many.
    assert tokenizer.encode([chunk + b" a dog" for chunk in chunks[:-1]]).truncated.all()


def test_sentences_stay_whole_where_they_fit(tmp_path):
    splitter = clip_splitter(tmp_path)
    chunks, _ = splitter.split([PROSE.encode()])

    pieces = [sentence for chunk in chunks for sentence in sentences_of(chunk.decode())]
    assert pieces == SENTENCES * 4
    assert len(chunks) < len(pieces)


def sentences_of(chunk: str) -> list[str]:
    """The known sentences that a chunk is made of; fails on anything else."""
    found = []
    while chunk:
        (first,) = [sentence for sentence in SENTENCES if chunk.startswith(sentence)]
        found.append(first)
        chunk = chunk.removeprefix(first).strip()
    return found


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("At 3.5 a.m. it rained. “Oh!” he said.", ["At 3.5 a.m. ", "it rained. ", "“Oh!” ", "he said."]),
        ("猫がいる。犬もいる！「はい。」と", ["猫がいる。", "犬もいる！", "「はい。」", "と"]),
        ("one\n\n two?! three", ["one\n\n ", "two?! ", "three"]),
        ("यह है। वह है", ["यह है। ", "वह है"]),
        ("no end", ["no end"]),
        ('so... it is?!" he asked...', ["so... ", 'it is?!" ', "he asked..."]),
        ("....", ["...."]),
        ('a."." b', ['a."." ', "b"]),
        ("猫。... 犬", ["猫。", "... ", "犬"]),
    ],
)
def test_where_sentences_end(text, ends):
    places = [0, *clip_split._ends(clip_split._SENTENCE_END, text)]
    assert [text[start:end] for start, end in itertools.pairwise(places)] == ends


def test_a_word_beyond_the_context_is_cut_between_tokens(tmp_path):
    chunks, _ = clip_splitter(tmp_path).split([b"photograph" * 60])

    assert set(chunks) == {b"photograph" * 22, b"photograph" * 16}


def test_a_sign_that_does_not_fit_stands_alone(tmp_path):
    splitter = clip_splitter(tmp_path, context_length=4, buckets=(4,))
    chunks, _ = splitter.split(["a 🏴 𒐫 b".encode()])

    assert [chunk.decode() for chunk in chunks] == ["a 🏴", "𒐫", "b"]


def test_a_long_text_of_white_space_is_one_empty_chunk(tmp_path):
    folder = tmp_path / "gaps"
    local_tokenizers.roberta(folder)
    exported = HfTokenizer(str(folder), CONTEXT, "none")
    exported.write(tmp_path / "tokenizer.json")
    settings = TextSettings(CONTEXT, (CONTEXT,), 1, 0, 2, "none", 65536, "hf")

    assert Splitter(tmp_path / "tokenizer.json", settings).split([b" \t" * 500]) == ([b""], [0])


def test_a_bad_text_is_named_with_its_index(tmp_path):
    with pytest.raises(TextError, match=r"^text\[1\]: bytes that are not UTF-8"):
        clip_splitter(tmp_path).split([b"good", b"caf\xe9"])


@pytest.mark.parametrize("near", [0, 10, 14, 60, 109, 500])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 16, 17, 99, 100])
def test_the_furthest_is_found_in_few_tries(count, near):
    tried = []
    ends = range(10, 110)

    found = clip_split._furthest(ends, 0, near, lambda end: tried.append(end) or end < 10 + count)

    assert found == (10 + count - 1 if count else None)
    assert len(tried) == len(set(tried)) <= 14


@pytest.mark.parametrize("first", [0, 3, 9])
def test_the_furthest_is_none_before_the_first(first):
    assert clip_split._furthest(range(10), first, 5, lambda end: end < first) is None
    assert clip_split._furthest([], 0, 5, lambda end: True) is None


def clip_splitter(folder: Path, **changes) -> Splitter:
    ClipBpe(CONTEXT).write(folder / "clip.json")
    values = {"context_length": CONTEXT, "buckets": (CONTEXT,), "pad_id": 0, "sot_id": 49406, "eot_id": 49407}
    return Splitter(folder / "clip.json", TextSettings(**values | {"clean": "lower", "max_bytes": 65536} | changes))
