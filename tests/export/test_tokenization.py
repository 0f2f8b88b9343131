"""The checkpoint's tokenizer: what is read of it, and what is refused before anything is written."""

import json
from pathlib import Path

import pytest

import local_tokenizers
from tritonclip_export.checkpoints.tokenization import ClipBpe, HfTokenizer, open_clip_tokenization
from tritonclip_export.errors import CheckpointError


def test_a_vocabulary_larger_than_the_tower_is_refused(tmp_path: Path) -> None:
    size = local_tokenizers.xlm(tmp_path)
    tokenizer = HfTokenizer(str(tmp_path), 16)
    with pytest.raises(CheckpointError, match=rf"ids up to {size - 1}, the text tower knows {size - 1} tokens"):
        tokenizer.spec(size - 1, "last", any_length=False)
    assert tokenizer.spec(size, "last", any_length=False).vocab_size == size


def test_a_tokenizer_far_smaller_than_the_tower_is_refused(tmp_path: Path) -> None:
    local_tokenizers.xlm(tmp_path)
    with pytest.raises(CheckpointError, match="knows 5000 tokens"):
        HfTokenizer(str(tmp_path), 16).spec(5000, "last", any_length=False)


def test_a_tokenizer_that_wants_to_run_code_is_refused(tmp_path: Path) -> None:
    local_tokenizers.xlm(tmp_path)
    (tmp_path / "evil.py").write_text("raise SystemExit('code ran')")
    settings = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match="no tokenizer can be read from"):
        HfTokenizer(str(tmp_path), 16)(["a"])


def test_clips_own_vocabulary_in_another_tower_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"1000 tokens.*hf_tokenizer_name"):
        ClipBpe(77).spec(1000, "argmax", any_length=True)


@pytest.mark.parametrize("content", [None, "{", "{}"])
def test_a_directory_without_a_tokenizer_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match="no tokenizer can be read from"):
        HfTokenizer(str(tmp_path), 16)(["a"])


def test_ends_and_padding_are_the_tokenizers(tmp_path: Path) -> None:
    local_tokenizers.roberta(tmp_path)
    spec = HfTokenizer(str(tmp_path), 16).spec(600, "mean", any_length=False)
    assert (spec.kind, spec.sot_id, spec.eot_id, spec.pad_id, spec.buckets) == ("hf", 0, 2, 1, (16,))


def test_a_separator_may_become_zero(tmp_path: Path) -> None:
    size = local_tokenizers.bert(tmp_path)
    config = {
        "text_cfg": {"hf_tokenizer_name": "x", "context_length": 8, "tokenizer_kwargs": {"strip_sep_token": True}}
    }
    tokenizer = open_clip_tokenization(config, str(tmp_path))
    assert 3 not in tokenizer(["a photo"])[0].tolist()
    assert tokenizer.spec(size, "last", any_length=False).zero_ids == (3,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"tokenizer_kwargs": {"strip_sep_token": True}}, "options strip_sep_token; this version serves: clean"),
        ({"hf_tokenizer_name": "x", "tokenizer_mode": "clips"}, "mode clips"),
    ],
)
def test_options_that_cannot_be_served_are_named(text: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_clip_tokenization({"text_cfg": text}, None)
