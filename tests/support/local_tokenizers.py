"""Small tokenizers of the kinds that CLIP families use, made here, in the files that transformers reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import NllbTokenizer, PreTrainedTokenizerFast

from sample_texts import ACTIONS, PLACES, SUBJECTS, WORLD

CHINESE = "杰尼龟 妙蛙种子 小火龙 皮卡丘"
CORPUS = [*SUBJECTS, *ACTIONS, *PLACES, *WORLD, CHINESE, "a photo of a cat", "two dogs play in the snow"]
QUIET = {"show_progress": False}


def bert(folder: Path, size: int = 600) -> int:
    """WordPiece with [CLS] … [SEP], as Chinese-CLIP and CLIPA have; returns the vocabulary's size."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=size, special_tokens=special, **QUIET))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    return _save(tokenizer, folder, **{f"{name}_token": token for name, token in names.items()})


def roberta(folder: Path, size: int = 600) -> int:
    """Byte-level BPE with <s> … </s> and padding 1."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet, **QUIET)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(sep=("</s>", 2), cls_token=("<s>", 0))
    return _save(tokenizer, folder, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


def xlm(folder: Path, size: int = 600) -> int:
    """Unigram with <s> … </s> and padding 1, as XLM-R and XLM-V have."""
    return _unigram(folder, size, ["<s>", "<pad>", "</s>", "<unk>"], "<s> $A </s>")


def t5(folder: Path, size: int = 600) -> int:
    """Unigram with a closing </s> that also pads, as SigLIP has."""
    return _unigram(folder, size, ["<pad>", "</s>", "<unk>"], "$A </s>", pad="</s>")


def mt5(folder: Path, size: int = 600) -> int:
    """Unigram with padding 0 and a closing </s>, as mT5 has."""
    vocabulary = _unigram(folder, size, ["<pad>", "</s>", "<unk>"], "$A </s>")
    # T5's class would add 100 tokens of its own.
    set_class(folder, "T5Tokenizer", extra_ids=0)
    return vocabulary


def nllb(folder: Path, size: int = 600) -> int:
    """BPE between a language's code and </s>, as NLLB's own class sets it, for three of its 202 languages."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=size, special_tokens=special, **QUIET))
    learnt = json.loads(tokenizer.to_str())["model"]
    languages = ["eng_Latn", "fra_Latn", "zho_Hans"]
    merges = [tuple(pair) for pair in learnt["merges"]]
    finished = NllbTokenizer(vocab=learnt["vocab"], merges=merges, extra_special_tokens=languages)
    finished.save_pretrained(folder)
    return len(finished)


def _unigram(folder: Path, size: int, special: list[str], template: str, pad: str = "<pad>") -> int:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=size, special_tokens=special, unk_token="<unk>", **QUIET)
    tokenizer.train_from_iterator(CORPUS, trainer)
    ids = [(name, tokenizer.token_to_id(name)) for name in special if name in template]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    return _save(tokenizer, folder, eos_token="</s>", pad_token=pad, unk_token="<unk>")


def _save(tokenizer: Tokenizer, folder: Path, **special: str) -> int:
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return tokenizer.get_vocab_size()


def set_class(folder: Path, name: str, **settings: object) -> None:
    """Say in tokenizer_config.json whose tokenizer this is."""
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer_class": name, **settings}))


KINDS: dict[str, Callable[[Path], int]] = {
    "bert": bert,
    "roberta": roberta,
    "xlm": xlm,
    "t5": t5,
    "mt5": mt5,
    "nllb": nllb,
}
