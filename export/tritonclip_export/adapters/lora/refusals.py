"""Which settings of adapter_config.json this version merges, which it ignores rightly, which it refuses.

A setting that is in none of the tables is refused when it is switched on: it may change the arithmetic.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from tritonclip_export.errors import AdapterError

# They leave the base weights alone; what they started from is in A and B.
MERGEABLE_INITS = (True, False, "gaussian", "eva", "orthogonal", "mica")
# They take a part out of the base weights, which PEFT takes out again, the same, when it loads the adapter.
REPEATABLE_INITS = ("pissa", "olora")
_LOST_INITS = {
    "pissa_niter": "PEFT takes a part out of the base weights that it draws at random, another one at every load",
    "corda": "the part that was taken out of the base weights depends on data that the adapter does not hold",
    "lora_ga": "the part that was taken out of the base weights depends on gradients that the adapter does not hold",
    "loftq": "it was trained on quantized base weights, which are not in the adapter",
}

# Methods whose own merge in PEFT equals their own forward; each one is held to that by a test.
PEFT_METHODS = frozenset(
    {
        *("ADALORA", "BEFT", "BOFT", "C3A", "DEFT", "DELORA", "FOURIERFT", "GLORA", "GRALORA", "HIRA", "HRA", "IA3"),
        *("LN_TUNING", "LOHA", "LOKR", "MISS", "OFT", "OSF", "PEANUT", "PSOFT", "PVERA", "RANDLORA", "ROAD", "SHIRA"),
        *("SUPERTUNING", "TINYLORA", "TRAINABLE_TOKENS", "UNILORA", "VBLORA", "VERA", "WAVEFT"),
    }
)
_PROMPTS = "it puts learned vectors before the input of every call, so no weights can hold it"
_ROUTED = "a router chooses between experts for every input, so no weights can hold it"
_METHODS_WITHOUT_MERGE = {
    "PROMPT_TUNING": _PROMPTS,
    "MULTITASK_PROMPT_TUNING": _PROMPTS,
    "P_TUNING": _PROMPTS,
    "PREFIX_TUNING": _PROMPTS,
    "CPT": _PROMPTS,
    "CARTRIDGE": _PROMPTS,
    "ADAPTION_PROMPT": "it adds gated prompts to the attention, so no weights can hold it",
    "XLORA": _ROUTED,
    "POLY": _ROUTED,
    "LILY": "its experts are mixed for every input, so no weights can hold it",
    "SHADOW": "it runs a second model beside the first, so no weights can hold it",
    "FROD": "it needs layers of one width in both towers, which CLIPs do not have",
}

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
    }
)

_REFUSED = {
    "fan_in_fan_out": "PEFT transposes by it what it adds to an nn.MultiheadAttention's out_proj. It switches it off "
    "where it adapts an nn.Linear; set it to false if that is all that was adapted",
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


# Families of transformers that this version exports.
_HF_FAMILIES = ("clip", "metaclip_2", "siglip", "siglip2", "chinese_clip")
# What trained classes begin with, and a tensor that only such models have; the rest are CLIPs.
_FAMILY_MARKS = {
    "Siglip": "vision_model.head.probe",
    "ChineseCLIP": "text_model.embeddings.word_embeddings.weight",
}
_HF_LIBRARY = re.compile(r"transformers\.models\.(?P<family>\w+)")


def needs_peft(config: Mapping[str, Any]) -> bool:
    """Whether PEFT itself must fold the adapter: a method other than LoRA, or an init that changes the base."""
    return config.get("peft_type") != "LORA" or not _is_mergeable_init(config)


def refuse_unmergeable(config: Mapping[str, Any], path: Path) -> None:
    """Raise AdapterError that names the first setting of `config` (read from `path`) that cannot be merged."""
    method = config.get("peft_type")
    if method == "LORA":
        _refuse_init(config, path)
        _refuse_settings(config, path)
    elif method not in PEFT_METHODS:
        reason = _METHODS_WITHOUT_MERGE.get(str(method), "this version does not know its merge")
        raise AdapterError(
            f"peft_type in {path} is {method!r}, which cannot be merged: {reason}. "
            f"Allowed: LORA, {', '.join(sorted(PEFT_METHODS))}."
        )
    _refuse_other_family(config.get("auto_mapping") or {}, path)


def _is_mergeable_init(config: Mapping[str, Any]) -> bool:
    init = config.get("init_lora_weights", True)
    return any(init is allowed or (isinstance(init, str) and init == allowed) for allowed in MERGEABLE_INITS)


def _refuse_init(config: Mapping[str, Any], path: Path) -> None:
    if _is_mergeable_init(config) or config["init_lora_weights"] in REPEATABLE_INITS:
        return
    init = config["init_lora_weights"]
    reason = next((why for name, why in _LOST_INITS.items() if str(init).startswith(name)), "it is unknown")
    raise AdapterError(
        f"init_lora_weights in {path} is {init!r}, which cannot be merged: {reason}. Allowed: "
        f"{', '.join(map(str, (*MERGEABLE_INITS, *REPEATABLE_INITS)))}. Convert the adapter where it was trained, "
        "by PEFT's save_pretrained(path_initial_model_for_weight_conversion=...), or export the model merged there."
    )


def _refuse_settings(config: Mapping[str, Any], path: Path) -> None:
    for name, value in config.items():
        if name in _MERGED or name in _WITHOUT_EFFECT or not value:
            continue
        reason = _REFUSED.get(name, "it is unknown to this version and may change the result")
        raise AdapterError(
            f"{name} in {path} is {value!r}, which cannot be merged: {reason}. "
            "Train without it, or merge with PEFT and export the merged model."
        )


def _refuse_other_family(auto_mapping: Mapping[str, Any], path: Path) -> None:
    """Others share CLIP's module names, so an adapter of theirs could fit by chance."""
    match = _HF_LIBRARY.match(str(auto_mapping.get("parent_library")))
    if match and match["family"] not in _HF_FAMILIES:
        raise AdapterError(
            f"{path} says that the adapter was trained on {auto_mapping.get('base_model_class')} of transformers' "
            f"family {match['family']!r}; this version merges adapters of {', '.join(_HF_FAMILIES)} and open_clip."
        )


def refuse_family_of_other_weights(trained_class: str | None, weights: Container[str], path: Path) -> None:
    """Raise AdapterError where `trained_class` of transformers and the names `weights` are of two families."""
    trained = next((name for name in _FAMILY_MARKS if (trained_class or "").startswith(name)), "CLIP")
    given = next((name for name, mark in _FAMILY_MARKS.items() if mark in weights), "CLIP")
    if trained_class is not None and trained != given:
        raise AdapterError(
            f"{path} was trained on {trained_class}, but the checkpoint is a {given}; their modules share names, "
            "not weights. Give the checkpoint that it was trained on."
        )
