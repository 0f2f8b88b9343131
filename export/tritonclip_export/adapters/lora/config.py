"""What PEFT's adapter_config.json says about the arithmetic of an adapter."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tritonclip_export.adapters.lora.refusals import needs_peft, refuse_unmergeable
from tritonclip_export.errors import AdapterError

CONFIG_FILE = "adapter_config.json"
BIAS_CHOICES = ("none", "all", "lora_only")
# Of settings that are looked into; None stands for one that is not there.
_KINDS: dict[str, tuple[type, str]] = {
    "auto_mapping": (dict, "an object"),
    "rank_pattern": (dict, "an object"),
    "alpha_pattern": (dict, "an object"),
    "modules_to_save": (list, "a list of names"),
    "peft_version": (str, "text"),
    "base_model_name_or_path": (str, "text"),
}


@dataclass(frozen=True)
class LoraSettings:
    """The fields of a LoraConfig that change the merged weights, and those that say where they came from."""

    r: int
    lora_alpha: float
    use_rslora: bool = False
    use_dora: bool = False
    lora_bias: bool = False
    bias: str = "none"
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    modules_to_save: tuple[str, ...] = ()
    trainable_token_indices: Mapping[str, Sequence[int]] | Sequence[int] | None = None
    peft_version: str | None = None
    base_model_class: str | None = None
    base_model_name: str | None = None

    def rank(self, module: str) -> int:
        """The rank of a module; `module` is its name in the model that was trained."""
        return self.rank_pattern.get(_pattern_for(self.rank_pattern, module), self.r)

    def scale(self, module: str) -> float:
        """The factor before B @ A: alpha / r, or alpha / sqrt(r) with rsLoRA."""
        alpha = self.alpha_pattern.get(_pattern_for(self.alpha_pattern, module), self.lora_alpha)
        rank = self.rank(module)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def ambiguous_patterns(self, module: str) -> tuple[str, ...]:
        """Keys of alpha_pattern that match a module beside others and disagree with them."""
        found = {key: alpha for key, alpha in self.alpha_pattern.items() if _matches(key, module)}
        return tuple(found) if len(set(found.values())) > 1 else ()

    def token_indices(self, module: str) -> Sequence[int]:
        """The rows of an embedding that were trained on their own; empty if none were."""
        indices = self.trainable_token_indices
        if not isinstance(indices, Mapping):
            return indices or ()
        owners = [key for key in indices if module == key or module.endswith(f".{key}")]
        return indices[owners[0]] if owners else ()

    def declares(self, tensor: str) -> bool:
        """Whether the settings say that this whole tensor was trained."""
        trained_bias = self.bias != "none" and tensor.endswith("bias")
        return trained_bias or any(f".{module}." in f".{tensor}" for module in self.modules_to_save)


def read_config(folder: Path) -> dict[str, Any]:
    """The content of `adapter_config.json`.

    Raises:
        AdapterError: the file is missing or broken, or a setting of the wrong kind.
    """
    path = folder / CONFIG_FILE
    raw = _read_json(path)
    for name, (kind, words) in _KINDS.items():
        if not isinstance(raw.get(name), (kind, type(None))):
            raise AdapterError(f"{name} in {path} is {raw[name]!r}; it must be {words}.")
    return raw


def read_settings(folder: Path) -> LoraSettings:
    """Read and check `adapter_config.json`.

    Raises:
        AdapterError: the file is missing or broken, or holds a setting that cannot be merged.
    """
    return parse_settings(read_config(folder), folder / CONFIG_FILE)


def parse_settings(raw: Mapping[str, Any], path: Path) -> LoraSettings:
    """The settings `raw` of a LoraConfig, which were read from `path`.

    Raises:
        AdapterError: one is missing or of the wrong kind, or cannot be merged.
    """
    refuse_unmergeable(raw, path)
    if needs_peft(raw):
        raise AdapterError(
            f"{path} is of an adapter that PEFT itself must merge (peft_type {raw.get('peft_type')!r}, "
            f"init_lora_weights {raw.get('init_lora_weights')!r}); give the directory that save_pretrained wrote."
        )
    auto_mapping = raw.get("auto_mapping") or {}
    try:
        return LoraSettings(
            r=_positive(raw["r"], "r", path),
            lora_alpha=_number(raw["lora_alpha"], "lora_alpha", path),
            use_rslora=bool(raw.get("use_rslora")),
            use_dora=bool(raw.get("use_dora")),
            lora_bias=bool(raw.get("lora_bias")),
            bias=_bias(raw.get("bias", "none"), path),
            rank_pattern=_patterns(raw, "rank_pattern", path, _positive),
            alpha_pattern=_patterns(raw, "alpha_pattern", path, _number),
            modules_to_save=tuple(raw.get("modules_to_save") or ()),
            trainable_token_indices=_tokens(raw.get("trainable_token_indices"), path),
            peft_version=raw.get("peft_version"),
            base_model_class=auto_mapping.get("base_model_class"),
            base_model_name=raw.get("base_model_name_or_path"),
        )
    except KeyError as error:
        raise AdapterError(f"{path} has no {error}; save the adapter again with PEFT.") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise AdapterError(
            f"{path.parent} has no {path.name}; an adapter is the directory that PEFT's save_pretrained "
            "writes. Give that directory."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"{path} is not readable JSON ({error}); copy or save the adapter again.") from error
    if not isinstance(raw, dict):
        raise AdapterError(f"{path} holds a {type(raw).__name__}, not the settings of an adapter.")
    return raw


def _pattern_for(patterns: Mapping[str, Any], module: str) -> str:
    """PEFT's rule: the first key that matches the end of the module's name, else the name itself."""
    return next((key for key in patterns if _matches(key, module)), module)


def _matches(key: str, module: str) -> bool:
    return re.match(rf"(.*\.)?({key})$", module) is not None


def _patterns(raw: Mapping[str, Any], name: str, path: Path, check: Any) -> dict[str, Any]:
    patterns = raw.get(name) or {}
    for key, value in patterns.items():
        check(value, f"{name}[{key!r}]", path)
        try:
            re.compile(key)
        except re.error as error:
            raise AdapterError(f"{name} in {path}: {key!r} is no regular expression ({error}).") from error
    return dict(patterns)


def _positive(value: Any, name: str, path: Path) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise AdapterError(f"{name} in {path} is {value!r}; it must be a whole number of at least 1.")
    return value


def _number(value: Any, name: str, path: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise AdapterError(f"{name} in {path} is {value!r}; it must be a finite number.")
    return value


def _tokens(value: Any, path: Path) -> Any:
    lists = value.values() if isinstance(value, dict) else [value or []]
    if not all(isinstance(rows, list) and all(isinstance(row, int) for row in rows) for rows in lists):
        raise AdapterError(
            f"trainable_token_indices in {path} is {value!r}; it must be a list of token ids, or one per embedding."
        )
    return value


def _bias(value: Any, path: Path) -> str:
    if value not in BIAS_CHOICES:
        raise AdapterError(f"bias in {path} is {value!r}; allowed: {', '.join(BIAS_CHOICES)}.")
    return str(value)
