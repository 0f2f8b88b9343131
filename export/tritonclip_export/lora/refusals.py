"""Which settings of adapter_config.json this version merges, which it ignores rightly, which it refuses.

A setting that is in none of the tables is refused when it is switched on: it may change the arithmetic.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tritonclip_export.errors import AdapterError

# They leave the base weights alone; what they started from is in A and B.
MERGEABLE_INITS = (True, False, "gaussian", "eva", "orthogonal", "mica")

_MERGED = frozenset(
    {
        *("peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern"),
        *("bias", "lora_bias", "modules_to_save", "trainable_token_indices", "init_lora_weights"),
        *("auto_mapping", "peft_version", "base_model_name_or_path"),
    }
)

# Where adapters sit is seen from the tensors; the rest acts in training only.
_WITHOUT_EFFECT = frozenset(
    {
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
        *("revision", "task_type", "inference_mode", "lora_dropout", "megatron_core", "runtime_config"),
        *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size"),
        "ensure_weight_tying",
        # PEFT itself switches it off on nn.Linear, and CLIP has no other layer that it could transpose.
        "fan_in_fan_out",
    }
)

_REFUSED = {
    "alora_invocation_tokens": "aLoRA acts from an invocation token on, so no weights can hold it",
    "alora_invocation_string": "aLoRA acts from an invocation token on, so no weights can hold it",
    "arrow_config": "Arrow routes between experts for every token, so no weights can hold it",
    "use_qalora": "QALoRA pools its input in groups",
    "target_parameters": "LoRA on bare parameters is not merged by this version; target modules instead",
    "layer_replication": "it adds layers to the model",
    "megatron_config": "Megatron shards the layers; convert the adapter to plain LoRA",
    "kasa_config": "KaSA truncates the base weights",
    "velora_config": "VeLoRA is not merged by this version",
    "monteclora_config": "MonteCLoRA samples its weights",
    "use_bdlora": "block-diagonal LoRA is not merged by this version",
}


# Families of transformers whose module names and towers are CLIPModel's.
_HF_FAMILIES = ("clip", "metaclip_2")
_HF_LIBRARY = re.compile(r"transformers\.models\.(?P<family>\w+)")


def refuse_unmergeable(config: Mapping[str, Any], path: Path) -> None:
    """Raise AdapterError that names the first setting of `config` (read from `path`) that cannot be merged."""
    method = config.get("peft_type")
    if method != "LORA":
        raise AdapterError(
            f"peft_type in {path} is {method!r}; this version merges LORA only. "
            "Merge the adapter with PEFT's merge_and_unload and export the merged model."
        )
    _refuse_init(config.get("init_lora_weights", True), path)
    _refuse_other_family(config.get("auto_mapping") or {}, path)
    for name, value in config.items():
        if name in _MERGED or name in _WITHOUT_EFFECT or not value:
            continue
        reason = _REFUSED.get(name, "it is unknown to this version and may change the result")
        raise AdapterError(
            f"{name} in {path} is {value!r}, which cannot be merged: {reason}. "
            "Train without it, or merge with PEFT and export the merged model."
        )


def _refuse_init(init: Any, path: Path) -> None:
    if any(init is allowed or (isinstance(init, str) and init == allowed) for allowed in MERGEABLE_INITS):
        return
    raise AdapterError(
        f"init_lora_weights in {path} is {init!r}, which changes the base weights before training; allowed: "
        f"{', '.join(str(allowed) for allowed in MERGEABLE_INITS)}. Convert the adapter by PEFT's save_pretrained("
        "path_initial_model_for_weight_conversion=...), or export the model that PEFT merges."
    )


def _refuse_other_family(auto_mapping: Mapping[str, Any], path: Path) -> None:
    """SigLIP and others share CLIP's module names, so an adapter of theirs could fit by chance."""
    match = _HF_LIBRARY.match(str(auto_mapping.get("parent_library")))
    if match and match["family"] not in _HF_FAMILIES:
        raise AdapterError(
            f"{path} says that the adapter was trained on {auto_mapping.get('base_model_class')} of transformers' "
            f"family {match['family']!r}; this version merges adapters of {', '.join(_HF_FAMILIES)} and open_clip."
        )
