"""The checkpoint's own tokenizer: texts to ids as it was trained, and the file that the server reads.

Two kinds: CLIP's byte-pair vocabulary, which open_clip brings along, and any fast tokenizer of Hugging Face, whose
files lie in the checkpoint's directory.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from tokenizers import Tokenizer

from tritonclip_export.checkpoints.tokenizer_file import write_json, write_tokenizer
from tritonclip_export.errors import CheckpointError
from tritonclip_export.frameworks import open_clip, torch
from tritonclip_export.spec import TextSpec, text_buckets

CLIP_PAD_ID = 0
# The share of a tower's token table that its own tokenizer uses at least.
LEAST_USED = 0.9


class Tokenization(Protocol):
    """A tokenizer that can be served."""

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Token ids, int32 [N, context_length], as the checkpoint was trained."""

    def spec(self, vocab_size: int, pooling: str, *, any_length: bool) -> TextSpec:
        """What the server must know.

        Raises:
            CheckpointError: the tower's embedding has not the size of the vocabulary.
        """

    def write(self, path: Path) -> None:
        """Write the file that the server reads."""

    def lengthened(self, context_length: int) -> Tokenization:
        """The same tokenizer for another context."""


@dataclass(frozen=True)
class ClipBpe:
    """CLIP's byte-pair encoding with open_clip's cleaning."""

    context_length: int
    clean: str = "lower"

    @cached_property
    def _tokenizer(self) -> open_clip.SimpleTokenizer:
        return open_clip.SimpleTokenizer(context_length=self.context_length, clean=self.clean)

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """See `Tokenization`."""
        ids: torch.Tensor = self._tokenizer(list(texts))
        return ids.int()

    def spec(self, vocab_size: int, pooling: str, *, any_length: bool) -> TextSpec:
        """See `Tokenization`."""
        if vocab_size != self._tokenizer.vocab_size:
            raise CheckpointError(
                f"the text tower knows {vocab_size} tokens, CLIP's byte-pair vocabulary has "
                f"{self._tokenizer.vocab_size}; put the checkpoint's own tokenizer into its directory, and name it in "
                "text_cfg.hf_tokenizer_name where the config is open_clip's"
            )
        return TextSpec(
            kind="clip",
            context_length=self.context_length,
            vocab_size=vocab_size,
            buckets=text_buckets(self.context_length, any_length=any_length),
            pad_id=CLIP_PAD_ID,
            sot_id=self._tokenizer.sot_token_id,
            eot_id=self._tokenizer.eot_token_id,
            clean=self.clean,
            pooling=pooling,
        )

    def write(self, path: Path) -> None:
        """See `Tokenization`."""
        write_tokenizer(path, self._tokenizer)

    def lengthened(self, context_length: int) -> ClipBpe:
        """See `Tokenization`."""
        return replace(self, context_length=context_length)


@dataclass(frozen=True)
class HfTokenizer:
    """A fast tokenizer of Hugging Face, padded to the context.

    Attributes:
        source: its directory, or its name on the hub.
        clean: what is done to a text before: one of the spec's CLEANINGS.
        strip_sep: whether the separator's id becomes 0, as CLIPA was trained.
        tokenizer_class: transformers' class, where the files do not decide it.
    """

    source: str
    context_length: int
    clean: str = "whitespace"
    strip_sep: bool = False
    tokenizer_class: str = "AutoTokenizer"

    @property
    def masked_id(self) -> int | None:
        """The padding's id where transformers' processor tells the model to mask it; None where it does not."""
        return int(self._tokenizer.pad_token_id) if "attention_mask" in self._tokenizer.model_input_names else None

    @cached_property
    def _tokenizer(self) -> Any:
        import transformers
        from transformers import BertTokenizer, PreTrainedTokenizerFast

        folder = Path(self.source)
        is_bare = (folder / "vocab.txt").is_file() and not (folder / "tokenizer_config.json").is_file()
        try:
            # transformers 5 has one BertTokenizer, a fast one; AutoTokenizer would ask for a config.json.
            # SigLIP's own class has no fast one, but its tokenizer.json can be read as it is.
            is_file = self.clean == "punctuation" and (folder / "tokenizer.json").is_file()
            named = getattr(transformers, self.tokenizer_class)
            kind: Any = BertTokenizer if is_bare else PreTrainedTokenizerFast if is_file else named
            tokenizer = kind.from_pretrained(self.source, trust_remote_code=False)
            if not tokenizer.is_fast:
                tokenizer = PreTrainedTokenizerFast.from_pretrained(self.source)
        except Exception as error:  # transformers raises whatever its parsers and its hub client raise
            raise CheckpointError(
                f"no tokenizer can be read from {self.source} ({type(error).__name__}: {first_line(error)}); give "
                "the directory that holds the checkpoint's tokenizer.json or vocab.txt: --tokenizer DIR"
            ) from error
        if tokenizer.pad_token_id is None:
            raise CheckpointError(f"the tokenizer in {self.source} names no padding token; set pad_token in its config")
        return tokenizer

    @cached_property
    def _zeroed(self) -> int | None:
        return self._tokenizer.sep_token_id if self.strip_sep else None

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """See `Tokenization`."""
        cleaned = [CLEAN[self.clean](text) for text in texts]
        settings = {"max_length": self.context_length, "padding": "max_length", "truncation": True}
        ids: torch.Tensor = self._tokenizer(cleaned, return_tensors="pt", **settings).input_ids.int()
        return ids if self._zeroed is None else ids.masked_fill(ids == self._zeroed, 0)

    def spec(self, vocab_size: int, pooling: str, *, any_length: bool) -> TextSpec:
        """See `Tokenization`."""
        tokenizer = self._tokenizer
        ends = self([""])[0]
        words = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False).values()
        added = [index for index, token in tokenizer.added_tokens_decoder.items() if not token.special]
        highest = max(*words, *added, int(ends.max()))
        # Towers round their tables up a little.
        if not LEAST_USED * vocab_size <= highest + 1 <= vocab_size:
            raise CheckpointError(
                f"the tokenizer in {self.source} makes ids up to {highest}, the text tower knows {vocab_size} tokens; "
                "give the tokenizer that the checkpoint was trained with: --tokenizer DIR"
            )
        return TextSpec(
            kind="hf",
            context_length=self.context_length,
            vocab_size=vocab_size,
            # Padding in front moves every position, so that a shorter row would be another text.
            buckets=text_buckets(self.context_length, any_length=any_length and tokenizer.padding_side == "right"),
            pad_id=int(tokenizer.pad_token_id),
            sot_id=int(ends[0]),
            eot_id=self._end_id(),
            clean=self.clean,
            pooling=pooling,
            zero_ids=() if self._zeroed is None else (self._zeroed,),
        )

    def lengthened(self, context_length: int) -> HfTokenizer:
        """See `Tokenization`."""
        return replace(self, context_length=context_length)

    def _end_id(self) -> int:
        """The id that closes a text; the padding's where nothing does."""
        ids = self._tokenizer([""]).input_ids[0]
        return int(ids[-1]) if ids else int(self._tokenizer.pad_token_id)

    def write(self, path: Path) -> None:
        """See `Tokenization`; cutting and padding are part of the file."""
        tokenizer = self._tokenizer
        backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        backend.enable_truncation(max_length=self.context_length, direction=tokenizer.truncation_side)
        backend.enable_padding(
            length=self.context_length,
            pad_id=tokenizer.pad_token_id,
            pad_token=tokenizer.pad_token,
            direction=tokenizer.padding_side,
        )
        write_json(path, backend)


def open_clip_tokenization(model_cfg: Mapping[str, Any], files: str | None) -> Tokenization:
    """The tokenizer that an open_clip model config asks for.

    Args:
        files: the directory with its files; None takes the hub's that the config names.

    Raises:
        CheckpointError: options that cannot be served.
    """
    text = open_clip.CLIPTextCfg(**model_cfg["text_cfg"])
    options = dict(text.tokenizer_kwargs or {})
    if options.get("clean", "lower") not in CLEAN:
        raise CheckpointError(f"the tokenizer cleans by {options['clean']!r}; allowed: {', '.join(CLEAN)}")
    from_hub = text.hf_tokenizer_name
    allowed = {"clean", "strip_sep_token"} if from_hub else {"clean"}
    unknown = sorted(set(options) - allowed) + (
        [f"tokenizer_mode {text.tokenizer_mode}"] if text.tokenizer_mode else []
    )
    if unknown:
        raise CheckpointError(
            f"the tokenizer has options {', '.join(unknown)}; this version serves: {', '.join(sorted(allowed))}"
        )
    if not from_hub:
        return ClipBpe(text.context_length, options.get("clean", "lower"))
    clean, strip_sep = options.get("clean", "whitespace"), bool(options.get("strip_sep_token"))
    return HfTokenizer(files or from_hub, text.context_length, clean, strip_sep)


def _remove_punctuation(text: str) -> str:
    """What transformers' SiglipTokenizer does before it looks words up."""
    return " ".join(text.lower().translate(str.maketrans("", "", string.punctuation)).split())


def first_line(error: Exception) -> str:
    """What an error says first, for a message of one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


CLEAN: dict[str, Callable[[str], str]] = {
    **{name: open_clip.tokenizer.get_clean_fn(name) for name in ("lower", "whitespace", "canonicalize")},
    "none": str,
    "punctuation": _remove_punctuation,
}
