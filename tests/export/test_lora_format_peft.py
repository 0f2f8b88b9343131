"""PEFT's tensors wherever they were saved: one file, or the state dict of a whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_files import assert_merged_equals, embeddings
from lora_models import (
    disturb,
    hf_embeddings,
    peft_wrap,
    plain_model,
    quiet,
    random_state_dict,
    set_config,
    train_adapter,
)
from tritonclip_export.adapters.lora import read_adapter
from tritonclip_export.errors import AdapterError
from tritonclip_export.frameworks import torch

STATE_DICT = random_state_dict()


RAW: dict[str, tuple[str, dict[str, Any]]] = {
    "hf": ("hf", {"target_modules": ["q_proj", "fc1", "token_embedding"]}),
    "hf, dora and saved modules": (
        "hf",
        {"target_modules": ["v_proj", "patch_embedding"], "use_dora": True, "modules_to_save": ["visual_projection"]},
    ),
    "hf, biases and tokens": (
        "hf",
        {
            "target_modules": ["fc2"],
            "lora_bias": True,
            "bias": "all",
            "trainable_token_indices": {"token_embedding": [3, 5]},
        },
    ),
    "open_clip": ("open_clip", {"target_modules": ["attn", "c_fc"], "rank_pattern": {"c_fc": 2}}),
}


@pytest.mark.parametrize("name", RAW)
def test_whole_state_dict_with_config_beside(name: str, tmp_path: Path) -> None:
    namespace, config = RAW[name]
    base = plain_model(namespace, STATE_DICT)
    model = peft_wrap(base, **config)
    disturb(model)
    with quiet():
        model.save_pretrained(str(tmp_path))
    torch.save(model.state_dict(), tmp_path / "raw.pt")
    expected = hf_embeddings(base) if namespace == "hf" else embeddings(base)
    result = assert_merged_equals(expected, STATE_DICT, tmp_path / "raw.pt")
    # The base weights that came along are not taken for trained ones.
    few = [key for key in result.report.adapters[0].replaced if not key.endswith("bias")]
    assert len(few) <= 1


def test_whole_state_dict_without_config_needs_alpha(tmp_path: Path) -> None:
    base = plain_model("open_clip", STATE_DICT)
    model = peft_wrap(base, target_modules=["attn", "c_fc"], rank_pattern={"c_fc": 2}, lora_alpha=6)
    disturb(model)
    torch.save(model.state_dict(), tmp_path / "raw.pt")
    with pytest.raises(AdapterError, match=r"no adapter_config.json beside it.*--lora-alpha"):
        read_adapter(tmp_path / "raw.pt")
    result = assert_merged_equals(embeddings(base), STATE_DICT, tmp_path / "raw.pt", alpha=6)
    assert "without rsLoRA and patterns" in result.report.warnings[0]


def test_state_dict_of_a_model_that_holds_a_wrapped_tower(tmp_path: Path) -> None:
    base = plain_model("hf", STATE_DICT)
    base.vision_model = peft_wrap(base.vision_model, target_modules=["q_proj"])
    disturb(base.vision_model)
    torch.save(base.state_dict(), tmp_path / "raw.pt")
    assert_merged_equals(hf_embeddings(base), STATE_DICT, tmp_path / "raw.pt", alpha=8)


@pytest.mark.parametrize("namespace", ["hf", "open_clip"])
def test_state_dict_that_was_saved_merged(namespace: str, tmp_path: Path) -> None:
    base = plain_model(namespace, STATE_DICT)
    model = peft_wrap(base, target_modules=["fc1"] if namespace == "hf" else ["c_fc"])
    disturb(model)
    expected = hf_embeddings(base) if namespace == "hf" else embeddings(base)
    model.merge_adapter()
    torch.save(model.state_dict(), tmp_path / "raw.pt")
    result = assert_merged_equals(expected, STATE_DICT, tmp_path / "raw.pt", alpha=8)
    assert "4 modules were saved with their LoRA merged already" in result.report.warnings[1]


def test_state_dict_of_several_adapters(tmp_path: Path) -> None:
    from peft import LoraConfig

    base = plain_model("hf", STATE_DICT)
    model = peft_wrap(base, target_modules=["fc1"])
    model.add_adapter("other", LoraConfig(r=4, lora_alpha=8, target_modules=["fc1"]))
    model.set_adapter("other")
    disturb(model)
    torch.save(model.state_dict(), tmp_path / "raw.pt")
    with pytest.raises(AdapterError, match="holds 2 adapters; name one by the format: peft:default, peft:other"):
        read_adapter(tmp_path / "raw.pt", alpha=8)
    with pytest.raises(AdapterError, match="has no adapter 'third'; it has default, other"):
        read_adapter(tmp_path / "raw.pt", alpha=8, format="peft:third")
    assert_merged_equals(hf_embeddings(base), STATE_DICT, tmp_path / "raw.pt", alpha=8, format="peft:other")


@pytest.mark.parametrize("safe", [True, False])
def test_the_file_of_a_directory(safe: bool, tmp_path: Path) -> None:
    trained = train_adapter(tmp_path / "a", "hf", STATE_DICT, target_modules=["q_proj"], use_rslora=True, safe=safe)
    (file,) = trained.path.glob("adapter_model.*")
    assert_merged_equals(trained.embeddings, STATE_DICT, file)
    with pytest.raises(AdapterError, match="stores alpha 8, not 3"):
        read_adapter(file, alpha=3)
    with pytest.raises(AdapterError, match="alpha 3 was given, but .* is PEFT's directory"):
        read_adapter(trained.path, alpha=3)


def test_file_of_a_method_that_peft_must_fold(tmp_path: Path) -> None:
    trained = train_adapter(tmp_path / "a", "hf", STATE_DICT, target_modules=["q_proj"])
    set_config(trained.path, init_lora_weights="pissa")
    with pytest.raises(AdapterError, match="PEFT itself must merge.*give the directory"):
        read_adapter(trained.path / "adapter_model.safetensors")
