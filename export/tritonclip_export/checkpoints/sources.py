"""One reader per kind of checkpoint: open_clip directory, Hugging Face directory, architecture, hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tritonclip_export.checkpoints import key_mapping
from tritonclip_export.checkpoints.checkpoint import Checkpoint
from tritonclip_export.checkpoints.extra_architectures import extra_architecture
from tritonclip_export.checkpoints.extra_architectures import names as extra_names
from tritonclip_export.checkpoints.hugging_face import towers as hf_towers
from tritonclip_export.checkpoints.hugging_face.processors import (
    HF_PREPROCESSOR,
    complete_preprocess,
    hf_preprocess,
    read_json,
)
from tritonclip_export.checkpoints.model import buildable, check_supported, new_model, quiet_open_clip
from tritonclip_export.checkpoints.normalize_weights import normalize_weights
from tritonclip_export.checkpoints.tokenization import (
    ClipBpe,
    HfTokenizer,
    Tokenization,
    first_line,
    open_clip_tokenization,
)
from tritonclip_export.checkpoints.weights import read_weights
from tritonclip_export.checkpoints.weights_check import require_fit
from tritonclip_export.errors import CheckpointError
from tritonclip_export.frameworks import open_clip, torch

HUB_SCHEME = "hf-hub:"
OPEN_CLIP_CONFIG = "open_clip_config.json"
HF_CONFIG = "config.json"
HF_TOKENIZER = "tokenizer_config.json"
HF_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model")
OPEN_CLIP_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
HF_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
HF_SHARDS = ("model-*.safetensors", "pytorch_model-*.bin")
TOKENIZER_FILES = ("*.txt", "*.model")


def from_path(source: str, tokenizer: Path | None) -> Checkpoint:
    """Read a directory; its config file tells whose it is."""
    path = Path(source)
    if not path.is_dir():
        raise CheckpointError(
            f"{path} is a file; for weights alone say whose they are: "
            f"tritonclip export ARCHITECTURE OUT --weights {path} --like TAG"
        )
    if (path / OPEN_CLIP_CONFIG).is_file():
        return _from_open_clip_directory(path, tokenizer or path)
    if (path / HF_CONFIG).is_file():
        return _from_hf_directory(path, tokenizer or path)
    raise CheckpointError(
        f"{path} is no checkpoint: it has neither {OPEN_CLIP_CONFIG} (open_clip) nor {HF_CONFIG} (Hugging Face)"
    )


def from_hub(source: str, tokenizer: Path | None) -> Checkpoint:
    """Fetch an open_clip repository ("hf-hub:ORG/REPO") and read it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repository = source.removeprefix(HUB_SCHEME)
    wanted = ["*.json", *TOKENIZER_FILES, *OPEN_CLIP_WEIGHTS, *HF_WEIGHTS, *HF_SHARDS]
    try:
        folder = Path(snapshot_download(repository, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{source} cannot be fetched ({type(error).__name__}: {first_line(error)}); check the name "
            "and the network, or give a directory that holds it"
        ) from error
    checkpoint = from_path(str(folder), tokenizer)
    return replace(checkpoint, name=repository.split("/")[-1], source={"hub": repository})


def named_architecture(name: str) -> dict[str, Any]:
    """The model config of one of open_clip's architectures, or of those beside it."""
    extra = extra_architecture(name)
    model_cfg: dict[str, Any] | None = extra[0] if extra else open_clip.get_model_config(name)
    if model_cfg is None:
        close = get_close_matches(name, [*open_clip.list_models(), *extra_names()], n=4)
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        raise CheckpointError(f"{name!r} is neither a directory nor an open_clip architecture{hint}")
    return model_cfg


def with_text_model(model_cfg: dict[str, Any], folder: Path | None) -> dict[str, Any]:
    """The config with its Hugging Face text tower, if it has one, described by `folder`'s config.json."""
    text = model_cfg.get("text_cfg", {})
    if "hf_model_name" not in text or folder is None or not (folder / HF_CONFIG).is_file():
        return model_cfg
    if "auto_map" in read_json(folder / HF_CONFIG):
        raise CheckpointError(f"{folder / HF_CONFIG} wants to run code of its own (auto_map); only data is read")
    return {**model_cfg, "text_cfg": {**text, "hf_model_name": str(folder)}}


def from_architecture(
    architecture: str,
    model_cfg: dict[str, Any],
    weights: Path | None,
    pretrained: str | None,
    like: str | None,
    random_weights: int | None,
    tokenizer: Path | None,
) -> Checkpoint:
    """Build one of open_clip's named architectures with weights from a file, a tag or a seed."""
    files = None if tokenizer is None else str(tokenizer)
    if (extra := extra_architecture(architecture)) is not None:
        tag = pretrained if like is None else like
        if tag is not None:
            raise CheckpointError(f"{architecture} has no tags, {tag!r} was given; leave the option out")
        return _extra(architecture, extra, weights, random_weights, files)
    if random_weights is not None:
        return _with_random_weights(architecture, model_cfg, like, random_weights, files)
    if pretrained is not None and like is not None:
        raise CheckpointError(
            f"the weights of --pretrained {pretrained} say how they were trained; leave --like {like} out"
        )
    tag = like if pretrained is None else pretrained
    if tag is None:
        raise CheckpointError(
            f"{weights} does not say which preprocessing and activation it was trained with; add --like TAG, "
            f"a tag of {architecture} trained the same way: {_tags(architecture)}"
        )
    model_cfg, preprocess_cfg = _trained_like(architecture, model_cfg, tag)
    if weights is not None:
        tensors, source = normalize_weights(read_weights(weights), model_cfg), {"weights": str(weights), "like": tag}
    else:
        tensors, source = _fetch(architecture, tag), {"pretrained": tag}
    tokenization = open_clip_tokenization(model_cfg, files)
    return Checkpoint(architecture, architecture, model_cfg, preprocess_cfg, tensors, tokenization, source)


def _extra(
    architecture: str,
    extra: tuple[dict[str, Any], dict[str, Any]],
    weights: Path | None,
    random_weights: int | None,
    files: str | None,
) -> Checkpoint:
    """What open_clip lacks: one preprocessing for all weights of a name, so that no tag is needed."""
    model_cfg, preprocess_cfg = extra
    if weights is None and random_weights is None:
        raise CheckpointError(f"open_clip fetches no weights of {architecture}; give a file: --weights FILE")
    if weights is not None:
        tensors, source = normalize_weights(read_weights(weights), model_cfg), {"weights": str(weights)}
    else:
        tensors, source = _random(model_cfg, random_weights), {"random_weights": str(random_weights)}
    if "hf_config" not in model_cfg:
        tokenization = open_clip_tokenization(model_cfg, files)
    elif files is None:
        raise CheckpointError(
            f"{architecture} needs its tokenizer; give the directory of tokenizer.json or vocab.txt: --tokenizer DIR"
        )
    else:
        tokenization = _hf_tokenization(model_cfg, Path(files))
    return Checkpoint(architecture, architecture, model_cfg, preprocess_cfg, tensors, tokenization, source)


def _random(model_cfg: dict[str, Any], seed: int | None) -> dict[str, torch.Tensor]:
    state = torch.get_rng_state()
    torch.manual_seed(seed or 0)
    tensors: dict[str, torch.Tensor] = new_model(model_cfg).state_dict()
    torch.set_rng_state(state)
    return tensors


def _from_open_clip_directory(path: Path, files: Path) -> Checkpoint:
    config = read_json(path / OPEN_CLIP_CONFIG)
    missing = [key for key in ("model_cfg", "preprocess_cfg") if key not in config]
    if missing:
        raise CheckpointError(f"{path / OPEN_CLIP_CONFIG} has no {' and no '.join(missing)}")
    check_supported(config["model_cfg"])
    if not isinstance(config["preprocess_cfg"], dict):
        raise CheckpointError(f"preprocess_cfg in {path / OPEN_CLIP_CONFIG} is no object; give size, mean, std …")
    model_cfg = with_text_model(config["model_cfg"], files)
    image_size = model_cfg.get("vision_cfg", {}).get("image_size", 224)
    preprocess_cfg = complete_preprocess({"size": image_size, **config["preprocess_cfg"]})
    tensors = normalize_weights(read_weights(_first_present(path, OPEN_CLIP_WEIGHTS)), model_cfg)
    tokenization = open_clip_tokenization(model_cfg, str(files))
    name = path.resolve().name
    return Checkpoint(name, name, model_cfg, preprocess_cfg, tensors, tokenization, {"directory": str(path)})


def _from_hf_directory(path: Path, files: Path) -> Checkpoint:
    model_cfg = _hf_model_cfg(path)
    tensors = normalize_weights(read_weights(_first_present(path, HF_WEIGHTS)), model_cfg)
    if "hf_config" not in model_cfg:
        # CLIPModel has a place in open_clip, the others run as they are. Checked by the names that people know.
        require_fit(
            key_mapping.to_hf(new_model(model_cfg, empty=True).state_dict()), tensors, f"the CLIPModel of {path}"
        )
        tensors = key_mapping.from_hf(tensors)
    preprocess_cfg = hf_preprocess(path / HF_PREPROCESSOR, model_cfg["vision_cfg"])
    tokenization = _hf_tokenization(model_cfg, files)
    if isinstance(tokenization, HfTokenizer) and _model_type(model_cfg) == "siglip2":
        model_cfg = hf_towers.with_processor_settings(
            model_cfg, preprocess_cfg["max_num_patches"], tokenization.masked_id
        )
    name = path.resolve().name
    return Checkpoint(name, name, model_cfg, preprocess_cfg, tensors, tokenization, {"directory": str(path)})


def _hf_model_cfg(path: Path) -> dict[str, Any]:
    from transformers import CLIPConfig

    from tritonclip_export.checkpoints.hugging_face.clip import open_clip_model_cfg

    config = read_json(path / HF_CONFIG)
    if config.get("model_type") == "clip":
        with buildable():
            return open_clip_model_cfg(CLIPConfig.from_pretrained(path))
    with buildable():
        return hf_towers.model_cfg(config)


def _hf_tokenization(model_cfg: Mapping[str, Any], files: Path) -> Tokenization:
    """The tokenizer in the directory; CLIP's own vocabulary where a CLIP brings none."""
    text = model_cfg["text_cfg"]
    has_files = any(found for pattern in HF_TOKENIZER_FILES for found in files.glob(pattern))
    if not has_files and "hf_config" not in model_cfg:
        return ClipBpe(text["context_length"])
    if not has_files:
        raise CheckpointError(
            f"{files} holds no tokenizer (none of {', '.join(HF_TOKENIZER_FILES)}); save the model's own into it, or "
            "give its directory: --tokenizer DIR"
        )
    settings = read_json(files / HF_TOKENIZER) if (files / HF_TOKENIZER).is_file() else {}
    kind = settings.get("tokenizer_class") or ""
    is_siglip = kind.startswith("SiglipTokenizer") or (not kind and _model_type(model_cfg) == "siglip")
    if is_siglip and settings.get("do_lower_case") is False:
        raise CheckpointError(
            f"{files / HF_TOKENIZER} keeps capitals (do_lower_case); this version lowers SigLIP's texts"
        )
    if _model_type(model_cfg) == "siglip2":
        # Its file may name Gemma's class, which does not lower capitals.
        return HfTokenizer(str(files), text["context_length"], "none", tokenizer_class="Siglip2Tokenizer")
    # Not part of SigLIP's tokenizer.json: transformers does it in Python.
    return HfTokenizer(str(files), text["context_length"], "punctuation" if is_siglip else "none")


def _model_type(model_cfg: Mapping[str, Any]) -> str | None:
    kind: str | None = model_cfg.get("hf_config", {}).get("model_type")
    return kind


def _with_random_weights(
    architecture: str, model_cfg: dict[str, Any], like: str | None, seed: int, files: str | None
) -> Checkpoint:
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if like is not None:
        model_cfg, preprocess_cfg = _trained_like(architecture, model_cfg, like)
    elif tags:
        preprocess_cfg = _trained_like(architecture, model_cfg, tags[0])[1]
    else:
        preprocess_cfg = complete_preprocess({"size": model_cfg["vision_cfg"]["image_size"]})
    tensors = _random(model_cfg, seed)
    source = {"random_weights": str(seed)}
    tokenization = open_clip_tokenization(model_cfg, files)
    return Checkpoint(architecture, architecture, model_cfg, preprocess_cfg, tensors, tokenization, source)


def _trained_like(architecture: str, model_cfg: dict[str, Any], tag: str) -> tuple[dict[str, Any], dict[str, Any]]:
    config = open_clip.get_pretrained_cfg(architecture, tag)
    if not config:
        raise CheckpointError(f"{architecture} has no tag {tag!r}; its tags: {_tags(architecture)}")
    overlay = {"size": model_cfg["vision_cfg"]["image_size"], **config}
    quick_gelu = bool(config.get("quick_gelu") or model_cfg.get("quick_gelu"))
    return {**model_cfg, "quick_gelu": quick_gelu}, complete_preprocess(overlay)


def _fetch(architecture: str, tag: str) -> dict[str, torch.Tensor]:
    try:
        with quiet_open_clip():
            model = open_clip.create_model(architecture, pretrained=tag)
    except (RuntimeError, OSError, ValueError) as error:
        raise CheckpointError(
            f"the weights {tag!r} of {architecture} cannot be fetched ({first_line(error)}); check the "
            "network, or give a file: --weights FILE --like TAG"
        ) from error
    return dict(model.state_dict())


def _tags(architecture: str) -> str:
    return ", ".join(open_clip.list_pretrained_tags_by_model(architecture)) or "none"


def _first_present(folder: Path, files: tuple[str, ...]) -> Path:
    present = [folder / name for name in files if (folder / name).is_file()]
    if not present:
        raise CheckpointError(f"{folder} holds no weights; expected one of {', '.join(files)}")
    return present[0]
