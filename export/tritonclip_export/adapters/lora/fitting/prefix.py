"""What the names of a one-tower adapter lack in a whole CLIP."""

from __future__ import annotations

from tritonclip_export.adapters.lora.fitting.shapes import misfit
from tritonclip_export.adapters.lora.naming.keys import Parts
from tritonclip_export.adapters.lora.naming.namespace import BARE_HF, BARE_VISUAL
from tritonclip_export.adapters.lora.read import Adapter
from tritonclip_export.adapters.lora.targets import Dead, locate, pattern_name
from tritonclip_export.adapters.lora.weights import BaseWeights
from tritonclip_export.errors import AdapterError

TEXT, VISION, VISUAL = "text_model.", "vision_model.", "visual."

# The class that PEFT records where one tower was trained; both libraries' inner and outer classes.
_TOWER_CLASSES = {
    "CLIPTextModel": TEXT,
    "CLIPTextTransformer": TEXT,
    "SiglipTextModel": TEXT,
    "SiglipTextTransformer": TEXT,
    "Siglip2TextModel": TEXT,
    "ChineseCLIPTextModel": TEXT,
    "CLIPVisionModel": VISION,
    "SiglipVisionModel": VISION,
    "SiglipVisionTransformer": VISION,
    "Siglip2VisionModel": VISION,
    "ChineseCLIPVisionModel": VISION,
    "CLIPVisionTransformer": VISION,
}


def find_prefix(adapter: Adapter, parts: Parts, base: BaseWeights) -> str:
    """The text to put before every name of `adapter`; empty for an adapter of a whole CLIP.

    Raises:
        AdapterError: the names fit both towers and the trained class is not recorded.
    """
    trained_class = adapter.settings.base_model_class
    if adapter.namespace == "open_clip":
        return _open_clip_prefix(adapter, parts, base)
    if not any(map(BARE_HF.match, adapter.tensors)):
        return ""
    if trained_class in _TOWER_CLASSES:
        return _TOWER_CLASSES[trained_class]
    fitting = [prefix for prefix in (TEXT, VISION) if fits(adapter, parts, prefix, base)]
    if len(fitting) == 2:
        raise AdapterError(
            f"{adapter.path} was trained on one tower and fits both; add "
            '"auto_mapping": {"base_model_class": "CLIPTextModel"} (or "CLIPVisionModel") to its '
            "adapter_config.json."
        )
    # Where neither fits, either name leads to the error that says what does not.
    return fitting[0] if fitting else TEXT


def _open_clip_prefix(adapter: Adapter, parts: Parts, base: BaseWeights) -> str:
    """open_clip's image tower by itself names its blocks as the whole CLIP names those of its text tower."""
    trained_class = adapter.settings.base_model_class
    if trained_class == "VisionTransformer" or any(map(BARE_VISUAL.match, adapter.tensors)):
        return VISUAL
    only_blocks = all(name.startswith("transformer.") for name in adapter.tensors)
    if trained_class is None and only_blocks and all(fits(adapter, parts, p, base) for p in ("", VISUAL)):
        raise AdapterError(
            f"{adapter.path} names blocks that both towers have, and does not record what it was trained on; add "
            '"auto_mapping": {"base_model_class": "CLIP"} (or "VisionTransformer") to its adapter_config.json.'
        )
    return ""


def fits(adapter: Adapter, parts: Parts, prefix: str, base: BaseWeights) -> bool:
    """Whether `base` has a place of the right shape for everything in `adapter`."""
    settings = adapter.settings
    for module in parts.low_rank:
        target = locate(module, prefix, base, settings.peft_version)
        if target is None:
            return False
        if isinstance(target, Dead):
            continue
        weight = base.get(target.weight)
        if weight is None or misfit(module, target, weight, settings.rank(pattern_name(module.trained))):
            return False
    return all(base.get(prefix + name) is not None for name in parts.replacements)
