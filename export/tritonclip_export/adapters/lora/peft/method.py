"""Adapters that PEFT itself must fold: its other methods, and LoRA whose start changed the base weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritonclip_export.adapters.lora.config import CONFIG_FILE
from tritonclip_export.adapters.lora.formats.files import load
from tritonclip_export.adapters.lora.naming.namespace import Namespace, recognize
from tritonclip_export.adapters.lora.peft.files import find_weights
from tritonclip_export.adapters.lora.refusals import refuse_unmergeable
from tritonclip_export.errors import AdapterError
from tritonclip_export.frameworks import torch

# What PEFT puts before a module's name, and before what all modules share (VeRA's projections).
_MODULE_PREFIX, _SHARED_PREFIX = "base_model.model.", "base_model."
_LIBRARIES: dict[str, Namespace] = {"transformers": "hf", "open_clip": "open_clip"}


@dataclass(frozen=True)
class MethodSettings:
    """What adapter_config.json says of where the adapter came from; PEFT reads the rest itself."""

    method: str
    peft_version: str | None = None
    base_model_class: str | None = None
    base_model_name: str | None = None


@dataclass(frozen=True)
class MethodAdapter:
    """An adapter that PEFT folds, as its `save_pretrained` wrote it.

    Attributes:
        path: its directory.
        settings: its method and origin.
        namespace: "open_clip" or "hf", whose module names it speaks.
        tensors: what belongs to one module, by its name in the trained model, without PEFT's prefix.
        files: the files that were read, for hashing.
        may_be_partial: whether tensors may be missing for modules that its adapter_config.json names.
    """

    path: Path
    settings: MethodSettings
    namespace: Namespace
    tensors: dict[str, torch.Tensor]
    files: tuple[Path, ...]
    may_be_partial: bool = False

    @property
    def name(self) -> str:
        """The name of its directory."""
        return self.path.resolve().name


def read_method(folder: Path, raw_config: Mapping[str, Any]) -> MethodAdapter:
    """Read the adapter in `folder`, whose adapter_config.json is `raw_config`.

    Raises:
        AdapterError: the method cannot be merged, PEFT does not know it or a setting of it, or a file is broken.
    """
    config_file = folder / CONFIG_FILE
    refuse_unmergeable(raw_config, config_file)
    _refuse_what_peft_ignores(raw_config, config_file)
    weight_file = find_weights(folder)
    tensors = _tensors(weight_file)
    auto_mapping = raw_config.get("auto_mapping") or {}
    settings = MethodSettings(
        method=_method(raw_config),
        peft_version=raw_config.get("peft_version"),
        base_model_class=auto_mapping.get("base_model_class"),
        base_model_name=raw_config.get("base_model_name_or_path"),
    )
    namespace = _namespace(tensors, auto_mapping, folder)
    return MethodAdapter(folder, settings, namespace, tensors, (config_file, weight_file))


def _method(config: Mapping[str, Any]) -> str:
    method = str(config["peft_type"])
    return f"LORA ({config['init_lora_weights']})" if method == "LORA" else method


def _refuse_what_peft_ignores(config: Mapping[str, Any], path: Path) -> None:
    """PEFT passes over a setting that it does not know, though it may change the result."""
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftType, __version__

    method = config["peft_type"]
    if method not in PeftType.__members__ or PeftType[method] not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise AdapterError(
            f"peft_type in {path} is {method!r}, which PEFT {__version__} does not have; install a newer."
        )
    known = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[method]].__dataclass_fields__
    unknown = [name for name, value in config.items() if value and name not in known]
    if unknown:
        raise AdapterError(
            f"{unknown[0]} in {path} is {config[unknown[0]]!r}, a setting that PEFT {__version__} does not know for "
            f"{method}; install the PEFT that trained the adapter ({config.get('peft_version') or 'not recorded'})."
        )
    if config.get("sample_at_inference"):
        raise AdapterError(f"sample_at_inference in {path} makes every answer random, so no weights can hold it.")


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    raw = load(path).tensors
    foreign = [key for key in raw if not key.startswith(_SHARED_PREFIX)]
    if foreign:
        raise AdapterError(
            f"{len(foreign)} keys of {path} do not start with {_SHARED_PREFIX} (first: {foreign[0]}); save the "
            "adapter with PEFT's save_pretrained."
        )
    modules = (key for key in raw if key.startswith(_MODULE_PREFIX))
    return {key.removeprefix(_MODULE_PREFIX): raw[key] for key in modules}


def _namespace(tensors: Mapping[str, torch.Tensor], auto_mapping: Mapping[str, Any], folder: Path) -> Namespace:
    """By the names; UniLoRA's one vector names no module, and then the recorded library tells."""
    library = str(auto_mapping.get("parent_library")).split(".")[0]
    if not tensors and library in _LIBRARIES:
        return _LIBRARIES[library]
    return recognize(tensors, auto_mapping.get("base_model_class"), folder)
