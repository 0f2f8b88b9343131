"""Reads a CLIP checkpoint, wherever it comes from, into one record.

A file of weights alone does not say which preprocessing or activation it was trained with. Where the
source does not say it either, the user must (`--like TAG`, `--tokenizer DIR`); nothing is guessed.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tritonclip_export.errors import CheckpointError
from tritonclip_export.frameworks import init_empty_weights, open_clip, torch
from tritonclip_export.tokenization import ClipBpe, Tokenization, first_line
from tritonclip_export.weights_check import require_finite, require_fit

HUB_SCHEME = "hf-hub:"


@dataclass(frozen=True)
class Checkpoint:
    """A CLIP in the terms of the library that runs it: open_clip, or transformers where open_clip has no such model.

    Attributes:
        name: what the served model is called.
        architecture: the open_clip name, or the folder's, for people to read.
        model_cfg: open_clip's model config (embed_dim, vision_cfg, text_cfg, quick_gelu …), or `hf_towers.model_cfg`.
        preprocess_cfg: open_clip's PreprocessCfg as a dict, complete.
        state_dict: weights under that library's names, in the checkpoint's own dtype.
        tokenization: its tokenizer.
        source: what was read, for the manifest.
    """

    name: str
    architecture: str
    model_cfg: dict[str, Any]
    preprocess_cfg: dict[str, Any]
    state_dict: dict[str, torch.Tensor]
    tokenization: Tokenization
    source: dict[str, str] = field(default_factory=dict)

    def build(self, state_dict: Mapping[str, torch.Tensor] | None = None) -> Any:
        """A float32 model in eval mode with these weights, or with `state_dict`'s.

        It has `encode_image` (float32 [N, 3, H, W], normalized) and `encode_text` (int64 [N, L]), both to [N, D].
        """
        model = new_model(self.model_cfg, empty=True)
        load_strictly(model, self.state_dict if state_dict is None else state_dict, self.architecture)
        return model


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
    from tritonclip_export import sources

    if tokenizer is not None and not tokenizer.is_dir():
        raise CheckpointError(f"--tokenizer {tokenizer} is no directory; give the one that holds the tokenizer's files")
    given = [weights is not None, pretrained is not None, random_weights is not None]
    folder = Path(source)
    if folder.exists() or source.startswith(HUB_SCHEME):
        if any(given) or like is not None:
            raise CheckpointError(
                f"{source} brings its own weights and preprocessing; leave out --weights, --pretrained, "
                "--like and --random-weights, or give an architecture name instead"
            )
        read = sources.from_hub if source.startswith(HUB_SCHEME) else sources.from_path
        checkpoint = read(source, tokenizer)
    else:
        model_cfg = sources.named_architecture(source)
        if sum(given) != 1:
            raise CheckpointError(
                f"the architecture {source!r} needs weights, {sum(given)} sources of them were given; give "
                "exactly one of --weights FILE, --pretrained TAG and --random-weights SEED"
            )
        model_cfg = sources.with_text_model(model_cfg, tokenizer)
        checkpoint = sources.from_architecture(source, model_cfg, weights, pretrained, like, random_weights, tokenizer)
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


def with_long_context(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with its 77 text positions stretched to 248; see `adopt.stretch_context`."""
    from tritonclip_export.adopt import stretch_context

    weights, model_cfg = stretch_context(checkpoint.state_dict, checkpoint.model_cfg)
    tokenization = checkpoint.tokenization.lengthened(model_cfg["text_cfg"]["context_length"])
    source = {**checkpoint.source, "stretched_context": str(model_cfg["text_cfg"]["context_length"])}
    return replace(checkpoint, state_dict=weights, model_cfg=model_cfg, tokenization=tokenization, source=source)


def new_model(model_cfg: Mapping[str, Any], *, empty: bool = False) -> Any:
    """A float32 model in eval mode with untrained weights: open_clip's, or transformers' of an `hf_config`.

    Args:
        empty: its parameters take no memory, on the device "meta", until weights are assigned; buffers are real.
            A model that cannot be built so is built as ever.

    Raises:
        CheckpointError: the config is none that can be built.
    """
    if empty:
        # timm's hybrid towers run their stem once to learn its size, which takes real weights.
        with suppress(CheckpointError), init_empty_weights(include_buffers=False):
            return _new_model(model_cfg)
    with _unset_is_nan():
        model = _new_model(model_cfg)
    # open_clip sets all weights but one of CoCa's caption decoder, which would be whatever lay in memory.
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.nan_to_num_(nan=0.0)
    return model


@contextmanager
def _unset_is_nan() -> Iterator[None]:
    """Have torch fill memory that is not set, which it does along with other things."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _new_model(model_cfg: Mapping[str, Any]) -> Any:
    if "hf_config" in model_cfg:
        from tritonclip_export.hf_towers import new_hf_model

        with buildable():
            return new_hf_model(model_cfg["hf_config"])
    check_supported(model_cfg)
    config = deepcopy(dict(model_cfg))
    # Whole checkpoints are loaded; weights of a tower alone would be fetched from a hub.
    if "timm_model_name" in config["vision_cfg"]:
        config["vision_cfg"]["timm_model_pretrained"] = False
    has_hf_text = "hf_model_name" in config["text_cfg"]
    if has_hf_text:
        config["text_cfg"]["hf_model_pretrained"] = False
    custom_text = config.pop("custom_text", False) or has_hf_text
    kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP if custom_text else open_clip.CLIP
    with quiet_open_clip(), buildable(), _text_model_found(config):
        return kind(**config).float().eval()


def check_supported(model_cfg: Mapping[str, Any]) -> None:
    """Refuse a model config that is none, or that this version cannot serve.

    Raises:
        CheckpointError: names the part of the config that is missing or not supported.
    """
    if not isinstance(model_cfg, Mapping):
        raise CheckpointError(
            f"the model config is {type(model_cfg).__name__}, not an object; give open_clip's settings"
        )
    missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in model_cfg]
    if missing:
        raise CheckpointError(
            f"the model config has no {' and no '.join(missing)}; a CLIP's has embed_dim, vision_cfg and text_cfg"
        )
    strange = [key for key in ("vision_cfg", "text_cfg") if not isinstance(model_cfg[key], Mapping)]
    if strange:
        raise CheckpointError(f"{' and '.join(strange)} of the model config is no object; give open_clip's settings")
    if "hf_config" not in model_cfg:
        with buildable():
            open_clip.CLIPVisionCfg(**model_cfg["vision_cfg"]), open_clip.CLIPTextCfg(**model_cfg["text_cfg"])


def load_strictly(model: torch.nn.Module, state_dict: Mapping[str, torch.Tensor], architecture: str) -> None:
    """Load every weight, none left over, in float32; a float32 tensor is shared with `state_dict`, not copied.

    Raises:
        CheckpointError: they do not fit (see `require_fit`), or hold NaN or infinity.
    """
    require_fit(model.state_dict(), state_dict, architecture)
    require_finite(state_dict)
    # Shared, because a copy of the largest models does not fit beside what reads and writes them.
    model.load_state_dict({key: value.float() for key, value in state_dict.items()}, assign=True)


def weights_hash(state_dict: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for key in sorted(state_dict):
        value = state_dict[key].detach().contiguous().cpu()
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def quiet_open_clip() -> Iterator[None]:
    """open_clip warns through the root logger about weights that are loaded a moment later."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


@contextmanager
def buildable() -> Iterator[None]:
    """What the libraries raise for a config that they cannot build becomes one CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # a config may hold anything, and then they run into anything
        raise CheckpointError(
            f"the model config is none of open_clip {open_clip.__version__} or transformers ({first_line(error)}); "
            "correct it, or install the version that wrote it"
        ) from error


@contextmanager
def _text_model_found(config: Mapping[str, Any]) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        name = config["text_cfg"].get("hf_model_name")
        if name is None:
            raise
        raise CheckpointError(
            f"the text tower is Hugging Face's {name!r}, whose config cannot be read ({first_line(error)}); "
            "give a directory with its config.json and tokenizer: --tokenizer DIR"
        ) from error
