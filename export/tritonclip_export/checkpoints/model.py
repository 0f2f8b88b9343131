"""Builds a CLIP in the library that runs it, and loads weights into it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy
from typing import Any

from tritonclip_export.checkpoints.tokenization import first_line
from tritonclip_export.checkpoints.weights_check import require_finite, require_fit
from tritonclip_export.errors import CheckpointError
from tritonclip_export.frameworks import init_empty_weights, open_clip, torch


def new_model(model_cfg: Mapping[str, Any], *, empty: bool = False) -> Any:
    """A float32 model in eval mode with untrained weights: open_clip's, or transformers' of an `hf_config`.

    Args:
        empty: its parameters take no memory, on the device "meta", until weights are assigned; buffers are real.
            A model that cannot be built so gets real ones.

    Raises:
        CheckpointError: the config cannot be built.
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
    """Have torch fill unset memory with NaN, which it does in its deterministic mode."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _new_model(model_cfg: Mapping[str, Any]) -> Any:
    if "hf_config" in model_cfg:
        from tritonclip_export.checkpoints.hugging_face.towers import new_hf_model

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
    """Reject a model config that is incomplete, or that this version cannot serve.

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
    """Turn whatever the libraries raise for a config into a CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # a config may hold anything, and then they run into anything
        raise CheckpointError(
            f"neither open_clip {open_clip.__version__} nor transformers can build this model config "
            f"({first_line(error)}); correct it, or install the version that wrote it"
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
