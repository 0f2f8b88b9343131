"""Settings of adapter_config.json that cannot be merged are refused by name, and no others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_models import random_state_dict, set_config, train_adapter
from tritonclip_export.adapters.lora import merge_adapters, read_adapter
from tritonclip_export.errors import AdapterError

STATE_DICT = random_state_dict()


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return train_adapter(tmp_path / "adapter", "hf", STATE_DICT, target_modules=["q_proj", "fc1"]).path


def merge(path: Path) -> None:
    merge_adapters(STATE_DICT, [(read_adapter(path), 1.0)])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens .*aLoRA"),
        ({"arrow_config": {"top_k": 2}}, "arrow_config .*routes"),
        ({"use_qalora": True}, "use_qalora .*pools"),
        ({"target_parameters": ["in_proj_weight"]}, "target_parameters .*bare parameters"),
        ({"layer_replication": [[0, 2]]}, "layer_replication .*adds layers"),
        ({"megatron_config": {"a": 1}}, "megatron_config .*shards"),
        ({"kasa_config": {"beta": 1}}, "kasa_config"),
        ({"monteclora_config": {"num_samples": 8}}, "monteclora_config"),
        ({"velora_config": {"scale": 1}}, "velora_config"),
        ({"use_bdlora": {"nblocks": 2}}, "use_bdlora"),
        ({"use_next_idea": True}, "use_next_idea .*unknown to this version"),
        (
            {
                "auto_mapping": {
                    "base_model_class": "BlipModel",
                    "parent_library": "transformers.models.blip.modeling_blip",
                }
            },
            "BlipModel .*family 'blip'; this version merges adapters of clip",
        ),
        ({"r": 0}, "r .* is 0; it must be a whole number"),
        ({"r": "8"}, "whole number"),
        ({"lora_alpha": None}, "lora_alpha .* finite number"),
        ({"rank_pattern": {"q_proj": 0}}, r"rank_pattern\['q_proj'\]"),
        ({"alpha_pattern": {"q_proj": "x"}}, r"alpha_pattern\['q_proj'\]"),
        ({"rank_pattern": {"q_proj(": 4}}, "no regular expression"),
        ({"bias": "some"}, "allowed: none, all, lora_only"),
        ({"trainable_token_indices": ["a"]}, "list of token ids"),
        ({"auto_mapping": "CLIPModel"}, "auto_mapping .* is 'CLIPModel'; it must be an object"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern .* must be an object"),
        ({"modules_to_save": "visual"}, "modules_to_save .* must be a list of names"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out .* PEFT transposes .* out_proj.* set it to false if that is all"),
        ({"peft_version": 0.21}, "peft_version .* is 0.21; it must be text"),
    ],
)
def test_settings(settings: dict[str, Any], words: str, adapter: Path) -> None:
    set_config(adapter, **settings)
    with pytest.raises(AdapterError, match=words):
        read_adapter(adapter)


@pytest.mark.parametrize("init", [True, False, "gaussian", "eva", "orthogonal", "mica"])
def test_inits_that_leave_the_base_alone_are_merged(init: Any, adapter: Path) -> None:
    set_config(adapter, init_lora_weights=init)
    merge(adapter)


def test_unknown_switch_that_is_off_is_no_obstacle(adapter: Path) -> None:
    set_config(adapter, use_next_idea=False, next_idea_config=None, next_idea_list=[])
    merge(adapter)


def test_missing_field(adapter: Path) -> None:
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "lora_alpha": 8}')
    with pytest.raises(AdapterError, match="has no 'r'"):
        read_adapter(adapter)


@pytest.mark.parametrize(
    ("text", "words"), [("{", "not readable JSON"), ("[1]", "holds a list"), ("\xff\xfe", "not readable JSON")]
)
def test_broken_config(text: str, words: str, adapter: Path) -> None:
    (adapter / "adapter_config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(AdapterError, match=words):
        read_adapter(adapter)


def test_missing_config(adapter: Path) -> None:
    (adapter / "adapter_config.json").unlink()
    with pytest.raises(AdapterError, match=r"has no adapter_config\.json"):
        read_adapter(adapter)
