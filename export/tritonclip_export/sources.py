"""One reader per kind of checkpoint: open_clip directory, Hugging Face directory, architecture, hub."""

from __future__ import annotations

import json
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tritonclip_export import names
from tritonclip_export.checkpoint import HUB_SCHEME, Checkpoint, new_model, quiet_open_clip
from tritonclip_export.errors import CheckpointError
from tritonclip_export.frameworks import open_clip, torch
from tritonclip_export.weights import read_weights

OPEN_CLIP_CONFIG = "open_clip_config.json"
HF_CONFIG = "config.json"
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
HF_PREPROCESSOR = "preprocessor_config.json"
HF_PROCESSOR = "processor_config.json"

# Pillow's numbers, which Hugging Face's preprocessor_config.json stores.
_RESAMPLE = {2: "bilinear", 3: "bicubic"}


def from_path(path: Path) -> Checkpoint:
    """Read a directory; its config file tells whose it is."""
    if not path.is_dir():
        raise CheckpointError(
            f"{path} is a file; for weights alone say whose they are: "
            f"tritonclip export ARCHITECTURE OUT --weights {path} --like TAG"
        )
    if (path / OPEN_CLIP_CONFIG).is_file():
        return _from_open_clip_directory(path)
    if (path / HF_CONFIG).is_file():
        return _from_hf_directory(path)
    raise CheckpointError(
        f"{path} is no checkpoint: it has neither {OPEN_CLIP_CONFIG} (open_clip) nor {HF_CONFIG} (Hugging Face)"
    )


def from_hub(source: str) -> Checkpoint:
    """Fetch an open_clip repository ("hf-hub:ORG/REPO") and read it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repository = source.removeprefix(HUB_SCHEME)
    wanted = ["*.json", *OPEN_CLIP_WEIGHTS, *HF_WEIGHTS, *HF_SHARDS]
    try:
        folder = Path(snapshot_download(repository, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{source} cannot be fetched ({type(error).__name__}: {str(error).splitlines()[0]}); check the name "
            "and the network, or give a directory that holds it"
        ) from error
    checkpoint = from_path(folder)
    short = repository.split("/")[-1]
    return Checkpoint(**{**checkpoint.__dict__, "name": short, "source": {"hub": repository}})


def named_architecture(name: str) -> dict[str, Any]:
    """The model config of one of open_clip's architectures."""
    model_cfg: dict[str, Any] | None = open_clip.get_model_config(name)
    if model_cfg is None:
        close = get_close_matches(name, open_clip.list_models(), n=4)
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        raise CheckpointError(f"{name!r} is neither a directory nor an open_clip architecture{hint}")
    return model_cfg


def from_architecture(
    architecture: str,
    model_cfg: dict[str, Any],
    weights: Path | None,
    pretrained: str | None,
    like: str | None,
    random_weights: int | None,
) -> Checkpoint:
    """Build one of open_clip's named architectures with weights from a file, a tag or a seed."""
    if random_weights is not None:
        return _with_random_weights(architecture, model_cfg, random_weights)
    tag = pretrained or like
    if tag is None:
        raise CheckpointError(
            f"{weights} does not say which preprocessing and activation it was trained with; add --like TAG, "
            f"a tag of {architecture} trained the same way: {_tags(architecture)}"
        )
    model_cfg, preprocess_cfg = _trained_like(architecture, model_cfg, tag)
    if weights is not None:
        tensors, source = read_weights(weights), {"weights": str(weights), "like": tag}
    else:
        tensors, source = _fetch(architecture, tag), {"pretrained": tag}
    return Checkpoint(architecture, architecture, model_cfg, preprocess_cfg, tensors, source)


def _from_open_clip_directory(path: Path) -> Checkpoint:
    config = _read_json(path / OPEN_CLIP_CONFIG)
    missing = [key for key in ("model_cfg", "preprocess_cfg") if key not in config]
    if missing:
        raise CheckpointError(f"{path / OPEN_CLIP_CONFIG} has no {' and no '.join(missing)}")
    image_size = config["model_cfg"].get("vision_cfg", {}).get("image_size", 224)
    preprocess_cfg = _complete_preprocess({"size": image_size, **config["preprocess_cfg"]})
    tensors = read_weights(_first_present(path, OPEN_CLIP_WEIGHTS))
    name = path.resolve().name
    return Checkpoint(name, name, config["model_cfg"], preprocess_cfg, tensors, {"directory": str(path)})


def _from_hf_directory(path: Path) -> Checkpoint:
    from transformers import CLIPConfig

    from tritonclip_export.hf_clip import open_clip_model_cfg

    kind = _read_json(path / HF_CONFIG).get("model_type")
    if kind != "clip":
        raise CheckpointError(
            f"{path / HF_CONFIG} is a model of type {kind!r}; this version exports 'clip' (CLIPModel)"
        )
    model_cfg = open_clip_model_cfg(CLIPConfig.from_pretrained(path))
    preprocess_cfg = _hf_preprocess(path / HF_PREPROCESSOR, model_cfg["vision_cfg"]["image_size"])
    tensors = names.from_hf(read_weights(_first_present(path, HF_WEIGHTS)))
    name = path.resolve().name
    return Checkpoint(name, name, model_cfg, preprocess_cfg, tensors, {"directory": str(path)})


def _hf_preprocess(path: Path, image_size: int) -> dict[str, Any]:
    """Translate a CLIPImageProcessor; refuse what open_clip's transforms cannot express."""
    config = _hf_processor(path)
    _refuse_missing_steps(config, path)
    size, crop = config.get("size", {}), config.get("crop_size", {})
    size = {"shortest_edge": size} if isinstance(size, int) else size
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
    box = {"height": image_size, "width": image_size}
    if size.get("shortest_edge") == image_size and config.get("do_center_crop", True) and crop == box:
        resize_mode = "shortest"
    elif size == box and not config.get("do_center_crop", True):
        resize_mode = "squash"
    else:
        raise CheckpointError(
            f"{path} resizes to {size} and crops to {crop or None}; this version serves shortest side then "
            f"center crop, or both sides, at the tower's {image_size} pixels"
        )
    resample = config.get("resample", 3)
    if resample not in _RESAMPLE or abs(config.get("rescale_factor", 1 / 255) - 1 / 255) > 1e-9:
        raise CheckpointError(
            f"{path} has resample {resample} and rescale_factor {config.get('rescale_factor')}; "
            "allowed: resample 2 (bilinear) or 3 (bicubic), rescale_factor 1/255"
        )
    return _complete_preprocess(
        {
            "size": image_size,
            "mean": config.get("image_mean", open_clip.OPENAI_DATASET_MEAN),
            "std": config.get("image_std", open_clip.OPENAI_DATASET_STD),
            "interpolation": _RESAMPLE[resample],
            "resize_mode": resize_mode,
        }
    )


def _hf_processor(path: Path) -> dict[str, Any]:
    """The settings of the image processor: a file of its own, or part of the CLIPProcessor's."""
    if path.is_file():
        return _read_json(path)
    whole = path.parent / HF_PROCESSOR
    config = _read_json(whole).get("image_processor") if whole.is_file() else None
    if not isinstance(config, dict):
        raise CheckpointError(
            f"{path.parent} does not say how its pictures are prepared: it has no {path.name}; save the model's "
            "CLIPProcessor into it"
        )
    return config


def _refuse_missing_steps(config: dict[str, Any], path: Path) -> None:
    off = [step for step in ("do_resize", "do_rescale", "do_normalize") if not config.get(step, True)]
    if off:
        raise CheckpointError(
            f"{path} switches {', '.join(off)} off; this version serves pictures that are resized, scaled to 0 "
            "to 1 and normalized"
        )


def _with_random_weights(architecture: str, model_cfg: dict[str, Any], seed: int) -> Checkpoint:
    generator_state = torch.get_rng_state()
    torch.manual_seed(seed)
    tensors = new_model(model_cfg).state_dict()
    torch.set_rng_state(generator_state)
    preprocess_cfg = _complete_preprocess({"size": model_cfg["vision_cfg"]["image_size"]})
    source = {"random_weights": str(seed)}
    return Checkpoint(architecture, architecture, model_cfg, preprocess_cfg, tensors, source)


def _trained_like(architecture: str, model_cfg: dict[str, Any], tag: str) -> tuple[dict[str, Any], dict[str, Any]]:
    config = open_clip.get_pretrained_cfg(architecture, tag)
    if not config:
        raise CheckpointError(f"{architecture} has no tag {tag!r}; its tags: {_tags(architecture)}")
    overlay = {"size": model_cfg["vision_cfg"]["image_size"], **config}
    quick_gelu = bool(config.get("quick_gelu") or model_cfg.get("quick_gelu"))
    return {**model_cfg, "quick_gelu": quick_gelu}, _complete_preprocess(overlay)


def _fetch(architecture: str, tag: str) -> dict[str, torch.Tensor]:
    try:
        with quiet_open_clip():
            model = open_clip.create_model(architecture, pretrained=tag)
    except (RuntimeError, OSError, ValueError) as error:
        raise CheckpointError(
            f"the weights {tag!r} of {architecture} cannot be fetched ({str(error).splitlines()[0]}); check the "
            "network, or give a file: --weights FILE --like TAG"
        ) from error
    return dict(model.state_dict())


def _complete_preprocess(overlay: dict[str, Any]) -> dict[str, Any]:
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    return asdict(PreprocessCfg(**merge_preprocess_dict(PreprocessCfg(), overlay)))


def _tags(architecture: str) -> str:
    return ", ".join(open_clip.list_pretrained_tags_by_model(architecture)) or "none"


def _first_present(folder: Path, files: tuple[str, ...]) -> Path:
    present = [folder / name for name in files if (folder / name).is_file()]
    if not present:
        raise CheckpointError(f"{folder} holds no weights; expected one of {', '.join(files)}")
    return present[0]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error})") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds {type(values).__name__}, not an object")
    return values
