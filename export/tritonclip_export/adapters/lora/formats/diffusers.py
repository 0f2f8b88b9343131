"""diffusers' `pytorch_lora_weights.safetensors`: LoRAs of a pipeline's models, each under its model's name.

https://github.com/huggingface/diffusers (src/diffusers/loaders)
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from tritonclip_export.adapters.lora.adapter import Adapter
from tritonclip_export.adapters.lora.config import LoraSettings, parse_settings
from tritonclip_export.adapters.lora.formats.encoders import Parts, Place, one_of_several, sort_encoders
from tritonclip_export.adapters.lora.formats.files import AdapterFile, Options
from tritonclip_export.adapters.lora.formats.layers import Layer, low_rank, make_adapter
from tritonclip_export.adapters.lora.naming.namespace import BARE_HF
from tritonclip_export.errors import AdapterError

METADATA_KEY = "lora_adapter_metadata"

_KEY = re.compile(r"(?P<model>text_encoder(?:_\d)?|unet|transformer)\.(?P<rest>.+)$")
_PART = re.compile(
    r"(?P<module>.+?)\.(?:"
    r"lora_linear_layer\.(?P<new>up|down)\.weight"
    r"|to_(?P<old_module>[qkv]|out)_lora\.(?P<old>up|down)\.weight"
    r"|lora_(?P<peft>A|B)\.weight"
    r"|(?P<other>alpha|lora_magnitude_vector|dora_scale)(?:\.weight)?"
    r")$"
)
_NAMES = {"down": "A", "up": "B", "dora_scale": "magnitude", "lora_magnitude_vector": "magnitude"}
# The blocks of T5 in Stable Diffusion 3 and FLUX.
_T5 = re.compile(r"(?:encoder\.block|shared)\.")


def read(file: AdapterFile, options: Options) -> Adapter:
    """scale: from the header's settings, else alpha / rank, else 1, as diffusers reads it."""
    encoders, ignored = sort_encoders(file, _place, "diffusers")
    adapters = {
        name: _adapter(modules, file, options, _settings(file, name), ignored) for name, modules in encoders.items()
    }
    return one_of_several(adapters, file, options, "diffusers")


def _place(key: str) -> Place:
    match = _KEY.match(key)
    if match is None:
        return None
    if not match["model"].startswith("text_encoder") or _T5.match(match["rest"]):
        return "other"
    part = _PART.match(match["rest"])
    return None if part is None else (match["model"], *_named(part))


def _named(match: re.Match[str]) -> tuple[str, str]:
    """A module by its name in `CLIPModel`, and A, B, alpha or magnitude."""
    module = match["module"]
    if match["old_module"]:
        module = f"{module}.{match['old_module']}_proj"
    # transformers 5 dropped the prefix from CLIPTextModel.
    if BARE_HF.match(module):
        module = f"text_model.{module}"
    part = match["new"] or match["old"] or match["peft"] or match["other"]
    return module, _NAMES.get(part, part)


def _adapter(
    modules: Mapping[str, Parts], file: AdapterFile, options: Options, settings: LoraSettings | None, ignored: int
) -> Adapter:
    notes = [f"{ignored} tensors of other models than CLIP were left out"] if ignored else []
    if settings is None and options.alpha is None and not any("alpha" in parts for parts in modules.values()):
        notes.append("the file stores no alpha, so alpha is the rank, as diffusers reads it")

    def scale(name: str, parts: Parts, rank: int) -> float:
        if settings is not None:
            return settings.scale(name)
        stored = parts.get("alpha")
        alpha = options.stored_or_given(None if stored is None else float(stored), file.path)
        return alpha / rank if alpha else 1.0

    layers = {name: _layer(name, parts, file, scale) for name, parts in modules.items()}
    return make_adapter(file, "hf", layers, "diffusers", notes=notes)


def _layer(name: str, parts: Parts, file: AdapterFile, scale: Callable[[str, Parts, int], float]) -> Layer:
    a, b = low_rank(name, parts, ("A", "B"), file)
    magnitude = parts.get("magnitude")
    return Layer(a, b, scale(name, parts, a.shape[0]), None if magnitude is None else magnitude.float().flatten())


def _settings(file: AdapterFile, model: str) -> LoraSettings | None:
    """The settings that the file's header has for one of its models, None if it has none."""
    text = file.metadata.get(METADATA_KEY)
    if text is None:
        return None
    try:
        header: dict[str, Any] = json.loads(text)
        raw = {key.removeprefix(f"{model}."): value for key, value in header.items() if key.startswith(f"{model}.")}
    except (AttributeError, TypeError, ValueError, RecursionError) as error:
        raise AdapterError(f"{METADATA_KEY} in the header of {file.path} is not readable JSON ({error}).") from error
    return parse_settings({"peft_type": "LORA", **raw}, file.path) if raw else None
