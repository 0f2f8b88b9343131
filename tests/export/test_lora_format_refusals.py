"""Adapter files that nobody can read, or that several readers could, are refused with the choices named."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from lora_files import assert_merged_equals
from lora_models import (
    random_state_dict,
    train_adapter,
)
from tritonclip_export.adapters.lora import read_adapter
from tritonclip_export.errors import AdapterError
from tritonclip_export.frameworks import torch

STATE_DICT = random_state_dict()
PAIR = {"lora_A": torch.ones(2, 32), "lora_B": torch.ones(128, 2)}
MODULE = "transformer.resblocks.0.mlp.c_fc"


def test_file_of_no_known_format(tmp_path: Path) -> None:
    save_file({"a.weight": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(AdapterError, match=r"no names of a LoRA .*first: a\.weight\); its formats: .*kohya.*loralib"):
        read_adapter(tmp_path / "a.safetensors")


def test_file_of_two_formats(tmp_path: Path) -> None:
    tensors = {f"{MODULE}.{part}": tensor for part, tensor in PAIR.items()}
    tensors |= {f"{MODULE}.{part}.weight": tensor for part, tensor in PAIR.items()}
    torch.save(tensors, tmp_path / "a.pt")
    with pytest.raises(AdapterError, match="names of loralib and of peft .*--adapter-format loralib or peft"):
        read_adapter(tmp_path / "a.pt", alpha=1)


def test_format_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="adapter format is 'lora'; allowed: clip-lora, kohya"):
        read_adapter(
            train_adapter(tmp_path, "hf", STATE_DICT, target_modules=["fc1"]).path / "adapter_model.safetensors",
            format="lora",
        )


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_file_cut_off(kept: float, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    tensors = {f"{MODULE}.{part}": tensor for part, tensor in PAIR.items()}
    torch.save(tensors, path) if suffix == ".pt" else save_file(tensors, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(AdapterError, match="cannot be read.*copy or download it again"):
        read_adapter(path, alpha=1)


@pytest.mark.parametrize("content", [{"a": Path("x")}, {"weights": {"layer_0": Path("x")}, "metadata": {}}])
def test_file_that_would_run_code(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(AdapterError, match="would run code"):
        read_adapter(tmp_path / "a.pt", alpha=1)


def test_file_of_other_things_than_tensors(tmp_path: Path) -> None:
    torch.save({"weights": {"layer_0": 3}, "metadata": {}}, tmp_path / "a.pt")
    with pytest.raises(AdapterError, match="layer_0 is a int, not a tensor"):
        read_adapter(tmp_path / "a.pt")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite(value: float, tmp_path: Path) -> None:
    torch.save({f"{MODULE}.lora_A": PAIR["lora_A"] * value, f"{MODULE}.lora_B": PAIR["lora_B"]}, tmp_path / "a.pt")
    with pytest.raises(AdapterError, match=r"1 tensors .* NaN or infinity .*c_fc\.lora_A"):
        read_adapter(tmp_path / "a.pt", alpha=1)


def test_file_that_is_no_file_of_weights(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(AdapterError, match=r"no file of weights; allowed: \.safetensors"):
        read_adapter(tmp_path / "a.txt")


def test_directory_without_config(tmp_path: Path) -> None:
    trained = train_adapter(tmp_path, "hf", STATE_DICT, target_modules=["fc1"])
    file = trained.path / "adapter_model.safetensors"
    assert load_file(file)
    (trained.path / "adapter_config.json").unlink()
    with pytest.raises(AdapterError, match=r"no adapter_config\.json"):
        read_adapter(trained.path)
    assert_merged_equals(trained.embeddings, STATE_DICT, file, alpha=8)
