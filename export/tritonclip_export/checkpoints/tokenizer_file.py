"""Writes open_clip's BPE vocabulary as a file of the `tokenizers` library.

The file holds the vocabulary, the merges and the pattern that splits words. Cleaning (ftfy, HTML entities,
lower case) and the start, end and padding ids stay outside: the server's tokenizer does them as open_clip does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from tritonclip_export.errors import CheckpointError

# open_clip's pattern with its `re.IGNORECASE` written out: "ſ" folds to "s", and the combining U+0345 folds to a
# letter, so it belongs to neither class and is dropped. The two special tokens are left out: in a user's text
# those words are text.
WORD_PATTERN = (
    r"'[sSſ]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
    r"|\p{L}+|\p{N}|[^\s\p{L}\p{N}\u0345]+"
)
END_OF_WORD = "</w>"


def write_tokenizer(path: Path, tokenizer: Any) -> None:
    """Write the vocabulary and merges of an open_clip `SimpleTokenizer` to `path` as JSON.

    Raises:
        CheckpointError: the tokenizer is of another kind.
    """
    if not hasattr(tokenizer, "bpe_ranks") or not hasattr(tokenizer, "encoder"):
        raise CheckpointError(
            f"the model's tokenizer is a {type(tokenizer).__name__}; open_clip's SimpleTokenizer can be served; "
            "choose a model whose text tower uses CLIP's own BPE vocabulary"
        )
    write_json(path, build_tokenizer(tokenizer.encoder, tokenizer.bpe_ranks))


def write_json(path: Path, tokenizer: Tokenizer) -> None:
    """Write `tokenizer` to `path`; a full disk is an OSError, which `Tokenizer.save` does not raise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(tokenizer.to_str(pretty=False), encoding="utf-8")


def build_tokenizer(vocabulary: dict[str, int], ranks: dict[tuple[str, str], int]) -> Tokenizer:
    """Byte-level BPE over words, no normalizer and no special tokens."""
    merges = sorted(ranks, key=lambda pair: ranks[pair])
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix=END_OF_WORD))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer
