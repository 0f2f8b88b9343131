"""Architectures by name that open_clip does not have: Chinese-CLIP's, Long-CLIP's and SigLIP 2's with NaFlex."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from tritonclip_export.checkpoints.hugging_face.processors import complete_preprocess
from tritonclip_export.frameworks import open_clip


def names() -> list[str]:
    """All of them."""
    return [entry["config"] for entry in _entries()]


def extra_architecture(name: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The model config and the preprocessing, which all weights of that name share; None for another name."""
    entry = next((entry for entry in _entries() if entry["config"] == name), None)
    if entry is None:
        return None
    model_cfg = _model_cfg(entry)
    trained = entry["weights"][0]
    overlay = {key: trained[key] for key in ("mean", "std", "interpolation")}
    preprocess_cfg = complete_preprocess({**overlay, "size": model_cfg["vision_cfg"]["image_size"]})
    return model_cfg, {**preprocess_cfg, "resize_mode": trained["resize"], **_naflex(model_cfg["vision_cfg"])}


def _model_cfg(entry: dict[str, Any]) -> dict[str, Any]:
    if "hf_config" in entry:
        from tritonclip_export.checkpoints.hugging_face.towers import model_cfg, with_processor_settings

        config = model_cfg(entry["hf_config"])
        return with_processor_settings(config, entry["max_num_patches"], None) if "max_num_patches" in entry else config
    config = open_clip.get_model_config(entry["open_clip"])
    return {**config, "text_cfg": {**config["text_cfg"], "context_length": entry["context_length"]}}


def _naflex(vision_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """What `spec.ImageSpec` says beyond open_clip of a tower that takes patches."""
    if "max_num_patches" not in vision_cfg:
        return {}
    sizes = {key: vision_cfg[key] for key in ("patch_size", "max_num_patches")}
    return {**sizes, "crop_offset": "floor", "to_rgb": "first"}


def _entries() -> list[dict[str, Any]]:
    text = files("tritonclip_export.registry").joinpath("extra_models.json").read_text(encoding="utf-8")
    entries: list[dict[str, Any]] = json.loads(text)
    return entries
