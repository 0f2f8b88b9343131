"""Files of diffusers: merged, they answer as PEFT's layers do unmerged."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lora_files import (
    TEXT,
    Tensors,
    assert_merged_equals,
    merge_file,
    peft_trained,
    saved,
    text_lora,
)
from lora_models import (
    Embeddings,
    random_state_dict,
)
from tritonclip_export.adapters.lora import read_adapter
from tritonclip_export.adapters.lora.adapter import Adapter
from tritonclip_export.adapters.lora.fitting.fit import fit_adapter
from tritonclip_export.adapters.lora.weights import base_weights
from tritonclip_export.adapters.read import read_adapters
from tritonclip_export.errors import AdapterError
from tritonclip_export.frameworks import torch

STATE_DICT = random_state_dict()


def trained(config: Any) -> tuple[Embeddings, Tensors]:
    return peft_trained(config, STATE_DICT)


DIFFUSERS_GRAMMARS: dict[str, tuple[tuple[str, str], ...]] = {
    "PEFT's": (),
    "lora_linear_layer": ((r"lora_A\.", "lora_linear_layer.down."), (r"lora_B\.", "lora_linear_layer.up.")),
    "to_q_lora": (
        (r"(q|k|v|out)_proj\.lora_A\.", r"to_\1_lora.down."),
        (r"(q|k|v|out)_proj\.lora_B\.", r"to_\1_lora.up."),
    ),
}


def diffusers_names(tensors: Tensors, grammar: str = "PEFT's", encoder: str = "text_encoder") -> Tensors:
    renamed = {}
    for key, tensor in tensors.items():
        for pattern, name in DIFFUSERS_GRAMMARS[grammar]:
            key = re.sub(pattern, name, key)
        renamed[f"{encoder}.{key}"] = tensor
    return renamed


@pytest.mark.parametrize("prefix", ["text_model.", ""])
@pytest.mark.parametrize("grammar", DIFFUSERS_GRAMMARS)
def test_diffusers_without_alpha(grammar: str, prefix: str, tmp_path: Path) -> None:
    expected, tensors = trained(text_lora(TEXT.format("q_proj|out_proj"), lora_alpha=4))
    tensors = {key.replace("text_model.", prefix): tensor for key, tensor in tensors.items()}
    others = {"unet.down_blocks.0.attn1.to_q.lora_A.weight": torch.ones(2, 2)}
    (tmp_path / "lora").mkdir()
    saved(tmp_path / "lora" / "pytorch_lora_weights.safetensors", {**diffusers_names(tensors, grammar), **others})
    assert_merged_equals(expected, STATE_DICT, tmp_path / "lora")
    first, second = read_adapter(tmp_path / "lora").notes
    assert "1 tensors of other models" in first
    assert "alpha is the rank" in second


def test_diffusers_alpha_by_key_or_by_option(tmp_path: Path) -> None:
    expected, tensors = trained(text_lora(TEXT.format("fc1")))
    named = diffusers_names(tensors)
    assert_merged_equals(expected, STATE_DICT, saved(tmp_path / "a.safetensors", named), alpha=8)
    alphas = {key.replace("lora_A.weight", "alpha"): torch.tensor(8.0) for key in named if "lora_A" in key}
    assert_merged_equals(expected, STATE_DICT, saved(tmp_path / "b.safetensors", {**named, **alphas}))


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"use_dora": True, "alpha_pattern": {"fc1": 3}}])
def test_diffusers_header(settings: dict[str, Any], tmp_path: Path) -> None:
    config = text_lora(TEXT.format("q_proj|fc1"), **settings)
    expected, tensors = trained(config)
    content = {name: sorted(value) if isinstance(value, set) else value for name, value in config.to_dict().items()}
    header = json.dumps({f"text_encoder.{name}": value for name, value in content.items()})
    path = saved(tmp_path / "a.safetensors", diffusers_names(tensors), lora_adapter_metadata=header)
    assert_merged_equals(expected, STATE_DICT, path)


def test_diffusers_header_that_is_broken(tmp_path: Path) -> None:
    _, tensors = trained(text_lora(TEXT.format("fc1")))
    path = saved(tmp_path / "a.safetensors", diffusers_names(tensors), lora_adapter_metadata="{")
    with pytest.raises(AdapterError, match="lora_adapter_metadata in the header .* not readable JSON"):
        read_adapter(path)


def test_diffusers_second_encoder(tmp_path: Path) -> None:
    expected, tensors = trained(text_lora())
    both = {**diffusers_names(tensors), **diffusers_names(tensors, encoder="text_encoder_2")}
    path = saved(tmp_path / "a.safetensors", both)
    with pytest.raises(AdapterError, match="diffusers:text_encoder, diffusers:text_encoder_2"):
        merge_file(STATE_DICT, path)
    adapter = read_adapter(path, format="diffusers:text_encoder_2", alpha=8)
    assert isinstance(adapter, Adapter)
    assert fit_adapter(adapter, base_weights("hf", STATE_DICT)) is adapter
    assert_merged_equals(expected, STATE_DICT, path, format="diffusers:text_encoder_2", alpha=8)


def test_diffusers_directory_takes_the_options_of_the_command(tmp_path: Path) -> None:
    _, tensors = trained(text_lora())
    both = {**diffusers_names(tensors), **diffusers_names(tensors, encoder="text_encoder_2")}
    saved(tmp_path / "pytorch_lora_weights.safetensors", both)
    ((adapter, _),) = read_adapters([(tmp_path, 1.0)], alpha=8, file_format="diffusers:text_encoder_2").merged
    assert isinstance(adapter, Adapter)
    assert (adapter.settings.lora_alpha, adapter.choices) == (8, ())
