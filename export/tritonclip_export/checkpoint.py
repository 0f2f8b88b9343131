"""Reads a CLIP checkpoint, wherever it comes from, into one record.

A file of weights alone does not say which preprocessing or activation it was trained with. Where the
source does not say it either, the user must (`--like TAG`); nothing is guessed.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tritonclip_export.errors import CheckpointError
from tritonclip_export.frameworks import open_clip, torch

HUB_SCHEME = "hf-hub:"


@dataclass(frozen=True)
class Checkpoint:
    """A CLIP in open_clip's terms.

    Attributes:
        name: what the served model is called.
        architecture: the open_clip name, or the folder's, for people to read.
        model_cfg: open_clip's model config (embed_dim, vision_cfg, text_cfg, quick_gelu …).
        preprocess_cfg: open_clip's PreprocessCfg as a dict, complete.
        state_dict: weights under open_clip's names, in the checkpoint's own dtype.
        source: what was read, for the manifest.
    """

    name: str
    architecture: str
    model_cfg: dict[str, Any]
    preprocess_cfg: dict[str, Any]
    state_dict: dict[str, torch.Tensor]
    source: dict[str, str] = field(default_factory=dict)

    def build(self, state_dict: Mapping[str, torch.Tensor] | None = None) -> open_clip.CLIP:
        """A float32 open_clip model in eval mode with these weights, or with `state_dict`'s."""
        model = new_model(self.model_cfg)
        load_strictly(model, self.state_dict if state_dict is None else state_dict, self.architecture)
        return model


def load_checkpoint(
    source: str,
    *,
    weights: Path | None = None,
    pretrained: str | None = None,
    like: str | None = None,
    random_weights: int | None = None,
    name: str | None = None,
) -> Checkpoint:
    """Read a checkpoint.

    Args:
        source: a directory (open_clip's `open_clip_config.json`, or Hugging Face's `config.json`), an
            open_clip architecture such as "ViT-B-32", or "hf-hub:ORG/REPO".
        weights: a state dict for the architecture; needs `like`.
        pretrained: an open_clip tag for the architecture, fetched from its hub.
        like: the tag of the architecture whose preprocessing and activation `weights` were trained with.
        random_weights: the seed of random weights, to measure speed with.

    Raises:
        CheckpointError: what cannot be read, is ambiguous, or is no CLIP that this version exports.
    """
    from tritonclip_export import sources

    given = [weights is not None, pretrained is not None, random_weights is not None]
    folder = Path(source)
    if folder.exists() or source.startswith(HUB_SCHEME):
        if any(given) or like is not None:
            raise CheckpointError(
                f"{source} brings its own weights and preprocessing; leave out --weights, --pretrained, "
                "--like and --random-weights, or give an architecture name instead"
            )
        checkpoint = sources.from_hub(source) if source.startswith(HUB_SCHEME) else sources.from_path(folder)
    else:
        model_cfg = sources.named_architecture(source)
        if sum(given) != 1:
            raise CheckpointError(
                f"the architecture {source!r} needs weights, {sum(given)} sources of them were given; give "
                "exactly one of --weights FILE, --pretrained TAG and --random-weights SEED"
            )
        checkpoint = sources.from_architecture(source, model_cfg, weights, pretrained, like, random_weights)
    check_supported(checkpoint.model_cfg)
    return checkpoint if name is None else _renamed(checkpoint, name)


def new_model(model_cfg: Mapping[str, Any]) -> open_clip.CLIP:
    """A float32 open_clip model in eval mode with untrained weights."""
    check_supported(model_cfg)
    known = {key: value for key, value in model_cfg.items() if key != "custom_text"}
    with quiet_open_clip(), _only_known_keys():
        return open_clip.CLIP(**known).float().eval()


def check_supported(model_cfg: Mapping[str, Any]) -> None:
    """Refuse what the served graphs would silently get wrong.

    Raises:
        CheckpointError: names the part of the config that is missing or not supported.
    """
    missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in model_cfg]
    if missing:
        raise CheckpointError(
            f"the model config has no {' and no '.join(missing)}; a CLIP's has embed_dim, vision_cfg and text_cfg"
        )
    vision, text = dict(model_cfg["vision_cfg"]), dict(model_cfg["text_cfg"])
    with _only_known_keys():
        open_clip.CLIPVisionCfg(**vision), open_clip.CLIPTextCfg(**text)
    problems = {
        "a Hugging Face text tower": "hf_model_name" in text,
        "a tokenizer from a hub": "hf_tokenizer_name" in text,
        "a timm image tower": "timm_model_name" in vision,
        "a custom text tower": bool(model_cfg.get("custom_text")),
        "a multimodal decoder (CoCa)": "multimodal_cfg" in model_cfg,
        "a text tower without causal mask": bool(text.get("no_causal_mask")),
        f"text pooling {text.get('pool_type')!r}": text.get("pool_type", "argmax") != "argmax",
        "a class token in the text tower": bool(text.get("embed_cls")),
    }
    found = [what for what, present in problems.items() if present]
    if found:
        raise CheckpointError(
            f"the checkpoint has {', '.join(found)}; this version exports CLIPs with open_clip's own "
            "image tower (ViT or ResNet) and its causal text tower with end-of-text pooling"
        )


def load_strictly(model: torch.nn.Module, state_dict: Mapping[str, torch.Tensor], architecture: str) -> None:
    """Load every weight, none left over, in float32.

    Raises:
        CheckpointError: names the first missing, unknown or misshapen tensors and counts the rest.
    """
    wanted = model.state_dict()
    problems = [f"missing {key}" for key in wanted if key not in state_dict]
    problems += [f"unknown {key}" for key in state_dict if key not in wanted]
    problems += [
        f"{key} is {tuple(state_dict[key].shape)}, not {tuple(wanted[key].shape)}"
        for key in wanted
        if key in state_dict and state_dict[key].shape != wanted[key].shape
    ]
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise CheckpointError(
            f"the weights do not fit {architecture}: {'; '.join(problems[:4])}{more}; check that "
            "the architecture is the one that these weights were trained with"
        )
    bad = [key for key, value in state_dict.items() if not torch.isfinite(value).all()]
    if bad:
        raise CheckpointError(
            f"{len(bad)} tensors hold NaN or infinity, first {bad[0]}; export a checkpoint that trained well"
        )
    model.load_state_dict({key: value.float() for key, value in state_dict.items()})


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
def _only_known_keys() -> Iterator[None]:
    try:
        yield
    except TypeError as error:
        raise CheckpointError(
            f"the model config is none of open_clip {open_clip.__version__} ({error}); correct model_cfg, or "
            "install the open_clip that wrote it"
        ) from error


def _renamed(checkpoint: Checkpoint, name: str) -> Checkpoint:
    return Checkpoint(**{**checkpoint.__dict__, "name": name})
