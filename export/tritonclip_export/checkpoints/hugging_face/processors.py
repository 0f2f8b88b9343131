"""How a checkpoint prepares its images, in open_clip's terms and a few that transformers adds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from tritonclip_export.checkpoints.hugging_face.naflex import join_rows
from tritonclip_export.errors import CheckpointError
from tritonclip_export.frameworks import open_clip, torch

HF_PREPROCESSOR = "preprocessor_config.json"
HF_PROCESSOR = "processor_config.json"

# Of 4096 the weights of all positions take 0.5 GB for a table of 16 x 16, and grow with the square.
MOST_PATCHES = 4096
# Pillow's numbers, which Hugging Face's preprocessor_config.json stores.
_RESAMPLE = {2: "bilinear", 3: "bicubic"}
# The processors that crop, and take OpenAI's mean and std, where their file does not say.
_CLIP_PROCESSORS = ("CLIP", "ChineseCLIP")
# Those that convert to RGB where their file does not say; a null in it says no.
_CONVERTING_PROCESSORS = (*_CLIP_PROCESSORS, "SiglipImageProcessor")


def hf_preprocess(path: Path, vision_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Translate an image processor of CLIP's kind; refuse what cannot be served.

    It is open_clip's PreprocessCfg as a dict, with what `spec.ImageSpec` says beyond it.

    Args:
        path: the processor's file.
        vision_cfg: of `towers.model_cfg`.
    """
    settings = _processor(path)
    config = {key: value for key, value in settings.items() if value is not None}
    _refuse_missing_steps(config, path)
    kind = str(config.get("image_processor_type", "CLIP"))
    like_clip = kind.startswith(_CLIP_PROCESSORS)
    unsaid = sorted({"image_mean", "image_std", "resample"} - set(config))
    if not like_clip and unsaid:
        raise CheckpointError(f"{path} does not say {', '.join(unsaid)}; save the model's processor into it again")
    if "num_patches" in vision_cfg:
        geometry = _naflex(config, path, vision_cfg["patch_size"])
    else:
        geometry = {"resize_mode": _resize_mode(config, path, vision_cfg["image_size"], crops=like_clip)}
    resample, factor = config.get("resample", 3), config.get("rescale_factor", 1 / 255)
    if resample not in list(_RESAMPLE) or not isinstance(factor, float) or abs(factor - 1 / 255) > 1e-9:
        raise CheckpointError(
            f"{path} has resample {resample} and rescale_factor {factor}; "
            "allowed: resample 2 (bilinear) or 3 (bicubic), rescale_factor 1/255"
        )
    as_open_clip = complete_preprocess(
        {
            "size": vision_cfg["image_size"],
            "mean": config.get("image_mean", open_clip.OPENAI_DATASET_MEAN),
            "std": config.get("image_std", open_clip.OPENAI_DATASET_STD),
            "interpolation": _RESAMPLE[resample],
        }
    )
    # A processor that does not convert takes RGB alone, so that its users convert first.
    to_rgb = "white" if settings.get("do_convert_rgb", kind.startswith(_CONVERTING_PROCESSORS)) else "first"
    return {**as_open_clip, **geometry, "crop_offset": "floor", "to_rgb": to_rgb}


def _resize_mode(config: dict[str, Any], path: Path, image_size: int, *, crops: bool) -> str:
    """`crops` is the processor's default."""
    size, crop = config.get("size", {}), config.get("crop_size", {})
    size = {"shortest_edge": size} if isinstance(size, int) else size
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
    box = {"height": image_size, "width": image_size}
    crops = config.get("do_center_crop", crops)
    shortest = size.get("shortest_edge") if isinstance(size, dict) else None
    if shortest == image_size and crops and crop == box:
        return "shortest"
    if size == box and (not crops or crop == box):
        return "squash"
    raise CheckpointError(
        f"{path} resizes to {size} and crops to {crop or None}; this version serves shortest side then "
        f"center crop, or both sides, at the tower's {image_size} pixels"
    )


def _naflex(config: dict[str, Any], path: Path, patch_size: int) -> dict[str, Any]:
    given, most = config.get("patch_size"), config.get("max_num_patches")
    if given != patch_size or type(most) is not int or not 1 <= most <= MOST_PATCHES:
        raise CheckpointError(
            f"{path} has patch_size {given} and max_num_patches {most}; this NaFlex tower takes patches of "
            f"{patch_size}, of which 1 to {MOST_PATCHES} are served; save the model's Siglip2ImageProcessor into it"
        )
    return {"resize_mode": "naflex", "patch_size": patch_size, "max_num_patches": most}


def _processor(path: Path) -> dict[str, Any]:
    """The settings of the image processor: a file of its own, or part of the CLIPProcessor's."""
    if path.is_file():
        return read_json(path)
    whole = path.parent / HF_PROCESSOR
    config = read_json(whole).get("image_processor") if whole.is_file() else None
    if not isinstance(config, dict):
        raise CheckpointError(
            f"{path.parent} does not say how its images are prepared: it has no {path.name}; save the model's "
            "CLIPProcessor into it"
        )
    return config


def _refuse_missing_steps(config: dict[str, Any], path: Path) -> None:
    off = [step for step in ("do_resize", "do_rescale", "do_normalize") if not config.get(step, True)]
    if off:
        raise CheckpointError(
            f"{path} switches {', '.join(off)} off; this version serves images that are resized, scaled to 0 "
            "to 1 and normalized"
        )


def hf_pixel_values(images: Sequence[Image.Image], preprocess_cfg: Mapping[str, Any]) -> torch.Tensor:
    """What the processor that `hf_preprocess` translated makes of RGB images, run by transformers on Pillow.

    float32 [N, 3, H, W], or rows (see `naflex`), normalized.
    """
    shared = {
        "resample": next(number for number, name in _RESAMPLE.items() if name == preprocess_cfg["interpolation"]),
        "image_mean": list(preprocess_cfg["mean"]),
        "image_std": list(preprocess_cfg["std"]),
    }
    if preprocess_cfg["resize_mode"] == "naflex":
        most = {key: preprocess_cfg[key] for key in ("patch_size", "max_num_patches")}
        made = _pillow_processor("Siglip2")(**shared, **most)(list(images), return_tensors="pt")
        return join_rows(made.pixel_values, made.spatial_shapes)
    side, crops = preprocess_cfg["size"], preprocess_cfg["resize_mode"] == "shortest"
    box = {"height": side, "width": side}
    size = {"shortest_edge": side} if crops else box
    processor = _pillow_processor("CLIP")(size=size, do_center_crop=crops, crop_size=box, **shared)
    pixel_values: torch.Tensor = processor(list(images), return_tensors="pt").pixel_values
    return pixel_values


def _pillow_processor(family: str) -> Any:
    import transformers

    name = f"{family}ImageProcessor"
    # transformers 4 has one class, which is Pillow's.
    return getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)


def complete_preprocess(overlay: dict[str, Any]) -> dict[str, Any]:
    """open_clip's PreprocessCfg as a dict, with its defaults where `overlay` says nothing.

    Raises:
        CheckpointError: a setting is nothing that open_clip or this version understands.
    """
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    try:
        complete = asdict(PreprocessCfg(**merge_preprocess_dict(PreprocessCfg(), overlay)))
    except (AssertionError, TypeError, ValueError) as error:
        raise CheckpointError(f"open_clip rejects this preprocessing config ({error!r}); correct {overlay}") from error
    size = complete["size"]
    sides = size if isinstance(size, (list, tuple)) else (size, size)
    if len(sides) != 2 or not all(isinstance(side, int) for side in sides):
        raise CheckpointError(f"size of the preprocessing is {size!r}; allowed: a whole number, or two")
    for name in ("mean", "std"):
        if not isinstance(complete[name], (list, tuple)) or len(complete[name]) != 3:
            raise CheckpointError(f"{name} of the preprocessing is {complete[name]!r}; allowed: three numbers")
    return complete


def read_json(path: Path) -> dict[str, Any]:
    """An object from a JSON file; raises CheckpointError where there is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error})") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds {type(values).__name__}, not an object")
    return values
