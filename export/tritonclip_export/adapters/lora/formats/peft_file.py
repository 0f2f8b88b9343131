"""PEFT's tensors in one file: `adapter_model.*` by itself, or the state dict of a whole `PeftModel`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from tritonclip_export.adapters.lora.adapter import Adapter
from tritonclip_export.adapters.lora.config import CONFIG_FILE, LoraSettings, read_settings
from tritonclip_export.adapters.lora.formats.files import AdapterFile, Options
from tritonclip_export.adapters.lora.formats.native import without_buffers
from tritonclip_export.adapters.lora.naming.keys import sort_parts
from tritonclip_export.adapters.lora.naming.namespace import recognize
from tritonclip_export.adapters.lora.targets import pattern_name
from tritonclip_export.errors import AdapterError
from tritonclip_export.frameworks import torch

PEFT_PREFIX = "base_model.model."
# A state dict keeps the adapter's name, which `save_pretrained` takes out.
_NAMED = re.compile(
    r"(?P<before>.+\.(?:lora_(?:A|B|embedding_A|embedding_B|magnitude_vector)|modules_to_save|trainable_tokens_delta))"
    r"\.(?P<adapter>[^.]+)(?P<after>\.weight|\.bias|\..+)?$"
)
_OWN_PARTS = ("weight", "bias")


def read(file: AdapterFile, options: Options) -> Adapter:
    """Settings come from adapter_config.json beside the file; without it alpha must be given."""
    tensors = _without_names(file, options)
    config = file.path.parent / CONFIG_FILE
    files: tuple[Path, ...] = (file.path,)
    notes: tuple[str, ...] = ()
    if config.is_file():
        files = (config, file.path)
        settings = read_settings(file.path.parent)
        options.stored_or_given(settings.lora_alpha, config)
    else:
        settings = _settings(tensors, file, options)
        notes = (f"no {CONFIG_FILE} beside the file: scale is alpha / r, without rsLoRA and patterns",)
    namespace = recognize(tensors, settings.base_model_class, file.path)
    whole = any(".base_layer." in key for key in tensors)
    return Adapter(file.path, settings, namespace, tensors, files, notes=notes, whole_model=whole)


def _without_names(file: AdapterFile, options: Options) -> dict[str, torch.Tensor]:
    """The tensors as `save_pretrained` names them, those of one adapter only."""
    keys = {key.replace(PEFT_PREFIX, ""): tensor for key, tensor in without_buffers(file.tensors).items()}
    adapter = _adapter_name(keys, file, options)
    tensors = {}
    for key, tensor in keys.items():
        match = _named(key)
        if match is None:
            if ".original_module." not in key:
                tensors[key.replace(".token_adapter.base_layer", "")] = tensor
        elif match["adapter"] == adapter:
            before, after = match["before"].removesuffix(".modules_to_save"), match["after"] or ""
            tensors[before + ("" if before.endswith("magnitude_vector") else after)] = tensor
    return tensors


def _adapter_name(keys: Mapping[str, torch.Tensor], file: AdapterFile, options: Options) -> str | None:
    found = sorted({match["adapter"] for key in keys if (match := _named(key))})
    if options.choice is not None and options.choice not in found:
        raise AdapterError(f"{file.path} has no adapter {options.choice!r}; it has {', '.join(found) or 'no names'}.")
    if len(found) > 1 and options.choice is None:
        raise AdapterError(
            f"{file.path} holds {len(found)} adapters; name one by the format: "
            f"{', '.join(f'peft:{name}' for name in found)}."
        )
    return options.choice or (found[0] if found else None)


def _named(key: str) -> re.Match[str] | None:
    match = _NAMED.match(key)
    return None if match is None or match["adapter"] in _OWN_PARTS else match


def _settings(tensors: Mapping[str, torch.Tensor], file: AdapterFile, options: Options) -> LoraSettings:
    if options.alpha is None:
        raise AdapterError(
            f"{file.path} has no {CONFIG_FILE} beside it, and the tensors do not tell alpha; put the file back beside "
            "its config, or give the lora_alpha of the training (--lora-alpha)."
        )
    modules = sort_parts(tensors).low_rank
    if not modules:
        raise AdapterError(f"{file.path} holds no LoRA; save the adapter again with PEFT.")
    ranks = {pattern_name(module.trained): module.a.shape[0] for module in modules}
    usual = Counter(ranks.values()).most_common(1)[0][0]
    return LoraSettings(
        r=usual,
        lora_alpha=options.alpha,
        use_dora=any(module.magnitude is not None for module in modules),
        lora_bias=any(module.bias is not None for module in modules),
        rank_pattern={f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != usual},
    )
