"""Reads a CLIP checkpoint, wherever it comes from, into one record.

A file of weights alone does not say which preprocessing or activation it was trained with. Where the
source does not say it either, the user must (`--like TAG`, `--tokenizer DIR`); nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tritonclip_export.checkpoints import sources
from tritonclip_export.checkpoints.checkpoint import Checkpoint
from tritonclip_export.checkpoints.model import check_supported, new_model
from tritonclip_export.checkpoints.normalize_weights import stretch_context
from tritonclip_export.checkpoints.tokenization import ClipBpe
from tritonclip_export.checkpoints.weights_check import require_finite, require_fit
from tritonclip_export.errors import CheckpointError


def load_checkpoint(
    source: str,
    *,
    weights: Path | None = None,
    pretrained: str | None = None,
    like: str | None = None,
    random_weights: int | None = None,
    tokenizer: Path | None = None,
    name: str | None = None,
) -> Checkpoint:
    """Read a checkpoint.

    Args:
        source: a directory (open_clip's `open_clip_config.json`, or Hugging Face's `config.json`), an
            open_clip architecture such as "ViT-B-32", or "hf-hub:ORG/REPO".
        weights: a state dict for the architecture; needs `like` where the name has several tags.
        pretrained: an open_clip tag for the architecture, fetched from its hub.
        like: the tag of the architecture whose preprocessing and activation `weights` were trained with.
        random_weights: the seed of random weights, to measure speed with.
        tokenizer: a directory with the tokenizer's files and, for a text tower of Hugging Face inside an open_clip
            model, that tower's config.json; None: those of the checkpoint, else those of the hub.

    Raises:
        CheckpointError: what cannot be read, is ambiguous, or is no CLIP that this version exports.
    """
    if tokenizer is not None and not tokenizer.is_dir():
        raise CheckpointError(f"--tokenizer {tokenizer} is no directory; give the one that holds the tokenizer's files")
    given = {"weights": weights, "pretrained": pretrained, "random_weights": random_weights}
    if Path(source).exists() or source.startswith(sources.HUB_SCHEME):
        checkpoint = _self_contained(source, tokenizer, has_more=like is not None or any(_is_given(given)))
    else:
        checkpoint = _architecture(source, tokenizer, like, given)
    check_supported(checkpoint.model_cfg)
    if tokenizer is not None and isinstance(checkpoint.tokenization, ClipBpe):
        raise CheckpointError(
            f"--tokenizer {tokenizer} would not be used: {checkpoint.name} has CLIP's own vocabulary, which open_clip "
            "brings along; leave the option out"
        )
    # Before the tokenizer and adapters, which would be blamed for weights of another model.
    require_fit(new_model(checkpoint.model_cfg, empty=True).state_dict(), checkpoint.state_dict, checkpoint.name)
    require_finite(checkpoint.state_dict)
    return checkpoint if name is None else replace(checkpoint, name=name)


def _self_contained(source: str, tokenizer: Path | None, *, has_more: bool) -> Checkpoint:
    """A directory or a repository of the hub."""
    if has_more:
        raise CheckpointError(
            f"{source} brings its own weights and preprocessing; leave out --weights, --pretrained, "
            "--like and --random-weights, or give an architecture name instead"
        )
    read = sources.from_hub if source.startswith(sources.HUB_SCHEME) else sources.from_path
    return read(source, tokenizer)


def _architecture(name: str, tokenizer: Path | None, like: str | None, given: Mapping[str, Any]) -> Checkpoint:
    """One of open_clip's architectures with weights from exactly one of the three places in `given`."""
    model_cfg = sources.named_architecture(name)
    count = sum(_is_given(given))
    if count != 1:
        raise CheckpointError(
            f"the architecture {name!r} needs weights, {count} sources of them were given; give "
            "exactly one of --weights FILE, --pretrained TAG and --random-weights SEED"
        )
    model_cfg = sources.with_text_model(model_cfg, tokenizer)
    return sources.from_architecture(name, model_cfg, like=like, tokenizer=tokenizer, **given)


def _is_given(options: Mapping[str, Any]) -> list[bool]:
    return [value is not None for value in options.values()]


def with_long_context(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with its 77 text positions stretched to 248; see `normalize_weights.stretch_context`."""
    weights, model_cfg = stretch_context(checkpoint.state_dict, checkpoint.model_cfg)
    tokenization = checkpoint.tokenization.lengthened(model_cfg["text_cfg"]["context_length"])
    source = {**checkpoint.source, "stretched_context": str(model_cfg["text_cfg"]["context_length"])}
    return replace(checkpoint, state_dict=weights, model_cfg=model_cfg, tokenization=tokenization, source=source)
