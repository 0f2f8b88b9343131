"""Any low-rank adapter as a directory of PEFT's, so that PEFT can run it unmerged."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file

from tritonclip_export.errors import AdapterError
from tritonclip_export.lora.adapter import Adapter
from tritonclip_export.lora.config import CONFIG_FILE
from tritonclip_export.lora.keys import sort_parts
from tritonclip_export.lora.targets import pattern_name


def save_as_peft(adapter: Adapter, folder: Path) -> Path:
    """Write `adapter`, as `fit_adapter` left it, into the empty directory `folder` and return it.

    Raises:
        AdapterError: PEFT has no layer for a part of it.
    """
    settings = adapter.settings
    parts = sort_parts(adapter.tensors)
    for module in parts.low_rank:
        if module.magnitude is not None and module.magnitude.ndim == 2:
            raise AdapterError(f"{module.trained} in {adapter.path} has DoRA by input, which PEFT does not have.")
    config = {
        "peft_type": "LORA",
        "r": settings.r,
        "lora_alpha": settings.lora_alpha,
        "use_rslora": settings.use_rslora,
        "use_dora": settings.use_dora,
        "lora_bias": settings.lora_bias,
        "bias": settings.bias,
        "rank_pattern": dict(settings.rank_pattern),
        "alpha_pattern": dict(settings.alpha_pattern),
        "modules_to_save": list(settings.modules_to_save) or None,
        "trainable_token_indices": settings.trainable_token_indices,
        "target_modules": sorted({pattern_name(module.trained) for module in parts.low_rank}),
        "peft_version": settings.peft_version,
        "inference_mode": True,
    }
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    tensors = {f"base_model.model.{key}": tensor.contiguous().clone() for key, tensor in adapter.tensors.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder
