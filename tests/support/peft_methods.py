"""Adapters of PEFT's other methods, and LoRA whose start changed the base: PEFT makes, disturbs and saves them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lora_models import MODEL_CFG, TRAINED_TOKENS, Trained, quiet, random_state_dict, train_adapter
from tritonclip_export.adapters.lora.peft.method import MethodAdapter, read_method
from tritonclip_export.checkpoints.model import load_strictly, new_model
from tritonclip_export.frameworks import torch

STATE_DICT = random_state_dict()

LINEAR = {"hf": ["q_proj", "fc1"], "open_clip": ["c_fc", "c_proj"]}
NORMS = {"hf": ["layer_norm1", "post_layernorm"], "open_clip": ["ln_1", "ln_post"]}
# Name of the case to the method, and what its config needs beside the target modules.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "ADALORA": ("ADALORA", {"total_step": 10}),
    "BEFT": ("BEFT", {}),
    "BOFT": ("BOFT", {"boft_block_size": 8}),
    "C3A": ("C3A", {"block_size": 16}),
    "DEFT": ("DEFT", {"r": 4}),
    "DELORA": ("DELORA", {"r": 4}),
    "FOURIERFT": ("FOURIERFT", {"n_frequency": 50}),
    "GLORA": ("GLORA", {"r": 4}),
    "GRALORA": ("GRALORA", {"r": 4}),
    "HIRA": ("HIRA", {"r": 4}),
    "HRA": ("HRA", {"r": 4}),
    "HRA, Gram-Schmidt": ("HRA", {"r": 4, "apply_GS": True}),
    "IA3": ("IA3", {"feedforward_modules": []}),
    "IA3, feedforward": ("IA3", {"target_modules": ["fc1", "c_fc"], "feedforward_modules": ["fc1", "c_fc"]}),
    "LN_TUNING": ("LN_TUNING", {}),
    "LOHA": ("LOHA", {"r": 4, "alpha": 8}),
    "LOKR": ("LOKR", {"r": 4, "alpha": 8}),
    "LOKR, both factored": ("LOKR", {"r": 2, "decompose_both": True, "use_effective_conv2d": True}),
    "MISS": ("MISS", {"r": 4}),
    "MISS, bat": ("MISS", {"r": 4, "init_weights": "bat"}),
    "OFT": ("OFT", {"r": 0, "oft_block_size": 8}),
    "OFT, constrained": ("OFT", {"r": 0, "oft_block_size": 8, "coft": True, "block_share": True, "bias": "all"}),
    "OSF": ("OSF", {}),
    "PEANUT": ("PEANUT", {"r": 4}),
    "PSOFT": ("PSOFT", {"r": 4}),
    "PVERA": ("PVERA", {"r": 4}),
    "RANDLORA": ("RANDLORA", {"r": 4}),
    "ROAD": ("ROAD", {"group_size": 16}),
    "SHIRA": ("SHIRA", {"r": 4}),
    "SUPERTUNING": ("SUPERTUNING", {}),
    "TINYLORA": ("TINYLORA", {"r": 2}),
    "TRAINABLE_TOKENS": ("TRAINABLE_TOKENS", {"token_indices": TRAINED_TOKENS}),
    "UNILORA": ("UNILORA", {"r": 4}),
    "VBLORA": ("VBLORA", {"r": 4, "num_vectors": 16, "vector_length": 16}),
    "VERA": ("VERA", {"r": 4}),
    "VERA, projection not saved": ("VERA", {"r": 4, "save_projection": False, "projection_prng_key": 5}),
    "WAVEFT": ("WAVEFT", {"n_frequency": 50}),
    "LORA, pissa": ("LORA", {"r": 4, "lora_alpha": 8, "init_lora_weights": "pissa"}),
    "LORA, olora": ("LORA", {"r": 4, "lora_alpha": 8, "init_lora_weights": "olora"}),
    "LORA, pissa and rslora": ("LORA", {"r": 4, "init_lora_weights": "pissa", "use_rslora": True}),
}


def peft_config(method: str, **settings: Any) -> Any:
    """PEFT's own config of a method."""
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftType

    with quiet():
        return PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[method]](**settings)


def targets(method: str, namespace: str) -> list[str]:
    """Modules of both towers that the method can adapt."""
    return {"LN_TUNING": NORMS[namespace], "TRAINABLE_TOKENS": ["token_embedding"]}.get(method, LINEAR[namespace])


def train(path: Path, namespace: str, case: str, part: str = "", **settings: Any) -> Trained:
    """The adapter of one of CASES on STATE_DICT, or on the submodule `part`; `settings` change its config."""
    method, own = CASES[case]
    config = peft_config(method, **{"target_modules": targets(method, namespace), **own, **settings})
    # Ten times the noise where a single vector drives all layers.
    noise = 1.0 if method == "UNILORA" else 0.1
    with quiet():
        return train_adapter(path, namespace, STATE_DICT, part=part, noise=noise, peft_config=config)


def read(path: Path) -> MethodAdapter:
    """Read a directory that `train` wrote."""
    return read_method(path, json.loads((path / "adapter_config.json").read_text()))


def build(state_dict: dict[str, torch.Tensor]) -> Any:
    """open_clip's model of MODEL_CFG, as `Checkpoint.build` makes it."""
    model = new_model(MODEL_CFG)
    load_strictly(model, state_dict, "test")
    return model
