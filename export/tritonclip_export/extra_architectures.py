"""Architectures by name that open_clip does not have: Chinese-CLIP's and Long-CLIP's."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from tritonclip_export.frameworks import open_clip
from tritonclip_export.processors import complete_preprocess


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
    size = model_cfg["vision_cfg"]["image_size"]
    return model_cfg, complete_preprocess({**overlay, "size": size, "resize_mode": trained["resize"]})


def _model_cfg(entry: dict[str, Any]) -> dict[str, Any]:
    if "hf_config" in entry:
        from tritonclip_export.hf_towers import model_cfg

        return model_cfg(entry["hf_config"])
    config: dict[str, Any] = open_clip.get_model_config(entry["open_clip"])
    return {**config, "text_cfg": {**config["text_cfg"], "context_length": entry["context_length"]}}


def _entries() -> list[dict[str, Any]]:
    text = files("tritonclip_export.registry").joinpath("extra_models.json").read_text(encoding="utf-8")
    entries: list[dict[str, Any]] = json.loads(text)
    return entries
