"""How a checkpoint prepares its pictures, in open_clip's terms."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tritonclip_export.errors import CheckpointError
from tritonclip_export.frameworks import open_clip

HF_PREPROCESSOR = "preprocessor_config.json"
HF_PROCESSOR = "processor_config.json"

# Pillow's numbers, which Hugging Face's preprocessor_config.json stores.
_RESAMPLE = {2: "bilinear", 3: "bicubic"}
# The processors that crop, and take OpenAI's mean and std, where their file does not say.
_CLIP_PROCESSORS = ("CLIP", "ChineseCLIP")


def hf_preprocess(path: Path, image_size: int) -> dict[str, Any]:
    """Translate an image processor of CLIP's kind; refuse what open_clip's transforms cannot express."""
    config = {key: value for key, value in _processor(path).items() if value is not None}
    _refuse_missing_steps(config, path)
    like_clip = str(config.get("image_processor_type", "CLIP")).startswith(_CLIP_PROCESSORS)
    unsaid = sorted({"image_mean", "image_std", "resample"} - set(config))
    if not like_clip and unsaid:
        raise CheckpointError(f"{path} does not say {', '.join(unsaid)}; save the model's processor into it again")
    size, crop = config.get("size", {}), config.get("crop_size", {})
    size = {"shortest_edge": size} if isinstance(size, int) else size
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
    box = {"height": image_size, "width": image_size}
    crops = config.get("do_center_crop", like_clip)
    if size.get("shortest_edge") == image_size and crops and crop == box:
        resize_mode = "shortest"
    elif size == box and (not crops or crop == box):
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
    return complete_preprocess(
        {
            "size": image_size,
            "mean": config.get("image_mean", open_clip.OPENAI_DATASET_MEAN),
            "std": config.get("image_std", open_clip.OPENAI_DATASET_STD),
            "interpolation": _RESAMPLE[resample],
            "resize_mode": resize_mode,
        }
    )


def _processor(path: Path) -> dict[str, Any]:
    """The settings of the image processor: a file of its own, or part of the CLIPProcessor's."""
    if path.is_file():
        return read_json(path)
    whole = path.parent / HF_PROCESSOR
    config = read_json(whole).get("image_processor") if whole.is_file() else None
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


def complete_preprocess(overlay: dict[str, Any]) -> dict[str, Any]:
    """open_clip's PreprocessCfg as a dict, with its defaults where `overlay` says nothing."""
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    return asdict(PreprocessCfg(**merge_preprocess_dict(PreprocessCfg(), overlay)))


def read_json(path: Path) -> dict[str, Any]:
    """An object from a JSON file; raises CheckpointError where there is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error})") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds {type(values).__name__}, not an object")
    return values
