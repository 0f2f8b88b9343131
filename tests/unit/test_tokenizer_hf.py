"""The served tokenizer, kind hf, against open_clip's HFTokenizer, transformers and the exporter's own, id by id."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import local_tokenizers
from sample_texts import captions, fuzzed, mixed
from tritonclip_export.checkpoints.tokenization import HfTokenizer as Exported
from tritonclip_export.frameworks import open_clip

sys.path.append(str(Path(__file__).parents[2] / "model_repository" / "tokenizer" / "1"))

import clip_tokenize
from clip_tokenize import HfTokenizer, TextError, TextSettings

CONTEXT = 24
LONG = ["a photo of two dogs " * count for count in (3, 4, 5, 6, 7, 200)] + ["杰尼龟" * 60, "x" * 3000, "Ünï  " * 99]
TEXTS = [*captions(60), *mixed(120), *fuzzed(400), *LONG, "", " ", "  two   spaces ", "don't_stop, ﷺ ½", "\t\n"]


def gemma(folder: Path) -> int:
    """BPE over spaces written as ▁, without a pre-tokenizer, <bos> … <eos>, bytes for what is unknown."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=special, max_token_length=12)
    # Learnt from words, so that merges do not span whole captions.
    words = [word for line in local_tokenizers.CORPUS for word in line.replace(" ", " ▁").split()]
    tokenizer.train_from_iterator(words, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 1)]
    )
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return tokenizer.get_vocab_size()


KINDS = {**local_tokenizers.KINDS, "gemma": gemma}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The directory of each kind, as transformers writes it."""
    root = tmp_path_factory.mktemp("tokenizers")
    for name, make in KINDS.items():
        make(root / name)
    return root


def served(exported: Exported, folder: Path, **changes) -> HfTokenizer:
    """The server's tokenizer over the file and the settings of the exporter's."""
    file = folder / "served" / "tokenizer.json"
    exported.write(file)
    spec = exported.spec(Tokenizer.from_file(str(file)).get_vocab_size(), "eos", any_length=False)
    names = ("context_length", "buckets", "pad_id", "sot_id", "eot_id", "clean", "kind", "zero_ids")
    settings = {name: getattr(spec, name) for name in names} | {"max_bytes": 65536} | changes
    tokenizer = clip_tokenize.open_tokenizer(file, TextSettings(**settings))
    assert isinstance(tokenizer, HfTokenizer)
    return tokenizer


def encoded(tokenizer: HfTokenizer, texts: list[str]) -> clip_tokenize.Tokens:
    return tokenizer.encode([text.encode() for text in texts])


def transformers_ids(folder: Path, texts: list[str], length: int) -> list[list[int]]:
    """What AutoTokenizer makes of texts."""
    reference = AutoTokenizer.from_pretrained(folder)
    return reference(texts, padding="max_length", truncation=True, max_length=length).input_ids


def differing(ours: np.ndarray, theirs) -> list[str]:
    """The texts whose ids differ."""
    return [text for text, a, b in zip(TEXTS, ours, np.asarray(theirs), strict=True) if not np.array_equal(a, b)]


@pytest.mark.parametrize("clean", ["whitespace", "lower", "canonicalize"])
@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_open_clips(folders, kind, clean):
    reference = open_clip.tokenizer.HFTokenizer(str(folders / kind), CONTEXT, clean=clean)
    tokenizer = served(Exported(str(folders / kind), CONTEXT, clean), folders / kind)

    ids = encoded(tokenizer, TEXTS).ids

    assert ids.dtype == np.int32
    assert ids.shape == (len(TEXTS), CONTEXT)
    assert differing(ids, reference(TEXTS)) == []


@pytest.mark.parametrize("clean", ["none", "punctuation"])
@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_transformers(folders, kind, clean):
    exported = Exported(str(folders / kind), CONTEXT, clean)
    ids = encoded(served(exported, folders / kind), TEXTS).ids

    assert differing(ids, exported(TEXTS)) == []
    if clean == "none":
        reference = AutoTokenizer.from_pretrained(folders / kind)
        assert (
            differing(ids, reference(TEXTS, padding="max_length", truncation=True, max_length=CONTEXT).input_ids) == []
        )


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_counts_as_truncated_where_the_whole_text_has_more_ids(folders, kind):
    reference = AutoTokenizer.from_pretrained(folders / kind)
    tokenizer = served(Exported(str(folders / kind), CONTEXT, "none"), folders / kind)

    truncated = encoded(tokenizer, TEXTS).truncated

    lengths = np.array([len(ids) for ids in reference(TEXTS).input_ids])
    assert truncated.dtype == np.bool_
    assert truncated.ravel().tolist() == (lengths > CONTEXT).tolist()
    assert {CONTEXT, CONTEXT + 1} <= set(lengths)


def test_vocab_txt_alone_is_bert(folders, tmp_path):
    vocabulary = json.loads((folders / "bert" / "tokenizer.json").read_text())["model"]["vocab"]
    (tmp_path / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.__getitem__)), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    exported = Exported(str(tmp_path), CONTEXT, "none")

    ids = encoded(served(exported, tmp_path), TEXTS).ids

    assert differing(ids, exported(TEXTS)) == []


def test_the_separator_becomes_zero_where_the_checkpoint_was_trained_so(folders):
    reference = open_clip.tokenizer.HFTokenizer(
        str(folders / "bert"), CONTEXT, clean="canonicalize", strip_sep_token=True
    )
    exported = Exported(str(folders / "bert"), CONTEXT, "canonicalize", strip_sep=True)
    tokenizer = served(exported, folders / "bert")

    ids = encoded(tokenizer, TEXTS).ids

    assert tokenizer.settings.zero_ids == (3,)
    assert not (ids == 3).any()
    assert differing(ids, reference(TEXTS)) == []


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_in_a_text_stay_text_unlike_transformers(folders, kind):
    reference = AutoTokenizer.from_pretrained(folders / kind)
    tokenizer = served(Exported(str(folders / kind), 64, "none"), folders / kind)
    special = set(reference.all_special_ids) - {reference.unk_token_id}

    def specials(row) -> list[int]:
        """Those before the padding, which may be one of them."""
        ids = list(row)
        while ids[-1] == reference.pad_token_id:
            ids.pop()
        return [token for token in ids if token in special]

    plain = specials(encoded(tokenizer, ["a b"]).ids[0])
    for literal in set(reference.all_special_tokens) - {reference.unk_token}:
        text = f"a {literal} b"
        assert specials(encoded(tokenizer, [text]).ids[0]) == plain
        assert specials(transformers_ids(folders / kind, [text], 64)[0]) != plain


@pytest.mark.parametrize(("words", "length"), [(0, 8), (6, 8), (7, 12), (10, 12), (11, 24), (22, 24), (500, 24)])
def test_rows_have_the_smallest_bucket_that_holds_the_longest_text(folders, words, length):
    exported = Exported(str(folders / "xlm"), CONTEXT)
    tokenizer = served(exported, folders / "xlm", buckets=(8, 12, 24))
    texts = ["", "a " * words]

    tokens = encoded(tokenizer, texts)

    whole = exported(texts).numpy()
    assert tokens.ids.shape == (2, length)
    assert np.array_equal(tokens.ids, whole[:, :length])
    assert (whole[:, length:] == tokenizer.settings.pad_id).all()
    assert tokens.truncated.ravel().tolist() == [False, words > 22]


def test_padding_on_the_left_stays_there(folders, tmp_path):
    shutil.copytree(folders / "gemma", tmp_path / "left")
    config = tmp_path / "left" / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "padding_side": "left"}))
    exported = Exported(str(tmp_path / "left"), CONTEXT)

    ids = encoded(served(exported, tmp_path), TEXTS).ids

    assert ids[TEXTS.index(""), 0] == 0
    assert differing(ids, exported(TEXTS)) == []
    with pytest.raises(ValueError, match=r"pads on the left, and buckets are \(8, 24\); only the context length 24"):
        served(exported, tmp_path, buckets=(8, 24))


def test_cutting_on_the_left_stays_there(folders, tmp_path):
    shutil.copytree(folders / "roberta", tmp_path / "left")
    config = tmp_path / "left" / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "truncation_side": "left"}))
    exported = Exported(str(tmp_path / "left"), CONTEXT)

    assert differing(encoded(served(exported, tmp_path), TEXTS).ids, exported(TEXTS)) == []


@pytest.mark.parametrize(("name", "value"), [("context_length", 32), ("pad_id", 5)])
def test_a_file_that_disagrees_with_the_settings_is_refused(folders, name, value):
    changes = {name: value} | ({"buckets": (32,)} if name == "context_length" else {})
    with pytest.raises(ValueError, match="cuts to 24, pads to 24 with the id 1; .* are the checkpoint's; write"):
        served(Exported(str(folders / "xlm"), CONTEXT), folders / "xlm", **changes)


def test_a_file_that_does_not_cut_is_refused(folders, tmp_path):
    settings = TextSettings(CONTEXT, (CONTEXT,), 1, 0, 2, "none", 65536, "hf")
    with pytest.raises(ValueError, match="cuts to None, pads to None"):
        HfTokenizer(folders / "xlm" / "tokenizer.json", settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "sentencepiece"}, "kind is 'sentencepiece'; clip, hf are allowed; set the parameter `kind`"),
        ({"kind": "clip"}, "clean is 'none'; lower, whitespace, canonicalize are allowed for kind clip; set"),
        (
            {"clean": "upper"},
            "clean is 'upper'; .*none, punctuation are allowed for kind hf; set the parameter",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, message):
    values = {"context_length": 8, "buckets": (8,), "pad_id": 0, "sot_id": 1, "eot_id": 2, "max_bytes": 9}
    with pytest.raises(ValueError, match=message):
        TextSettings(**values | {"clean": "none", "kind": "hf"} | changes)


def test_the_parameters_of_the_config_are_read():
    parameters = {"context_length": "8", "buckets": "4,8", "pad_id": "0", "sot_id": "1", "eot_id": "2"}
    parameters |= {"clean": "none", "max_bytes": "9", "kind": "hf", "zero_ids": "2,3"}

    settings = clip_tokenize.settings_from(parameters)

    assert (settings.kind, settings.zero_ids, settings.buckets) == ("hf", (2, 3), (4, 8))
    assert clip_tokenize.settings_from(parameters | {"zero_ids": ""}).zero_ids == ()


def test_a_bad_text_is_named_with_its_index(folders):
    tokenizer = served(Exported(str(folders / "t5"), CONTEXT), folders / "t5")
    with pytest.raises(TextError, match=r"^text\[1\]: bytes that are not UTF-8"):
        tokenizer.encode([b"good", b"caf\xe9"])


def test_an_added_word_that_is_not_special_is_still_one_token(folders, tmp_path):
    shutil.copytree(folders / "bert", tmp_path / "added")
    reference = AutoTokenizer.from_pretrained(tmp_path / "added")
    reference.add_tokens([AddedToken("squirtle")])
    reference.save_pretrained(tmp_path / "added")
    exported = Exported(str(tmp_path / "added"), CONTEXT, "none")

    ids = encoded(served(exported, tmp_path), ["a squirtle here"]).ids

    assert np.array_equal(ids, exported(["a squirtle here"]))
    assert reference.convert_tokens_to_ids("squirtle") in ids
