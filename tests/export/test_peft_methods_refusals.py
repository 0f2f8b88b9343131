"""What no weights can hold, or what PEFT would pass over silently, is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from lora_models import MODEL_CFG, set_config, train_adapter
from peft_methods import STATE_DICT, build, train
from tritonclip_export.adapters.lora import merge_adapters, read_adapter
from tritonclip_export.adapters.lora.peft import load as module
from tritonclip_export.checkpoints.model import new_model
from tritonclip_export.errors import AdapterError
from tritonclip_export.frameworks import torch
from tritonclip_export.parity.reference import ReferenceUnavailable, unmerged_reference

PREFIX = "base_model.model."
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return train(tmp_path / "a", "hf", "IA3").path


def merge(path: Path, state_dict: Tensors = STATE_DICT) -> None:
    merge_adapters(state_dict, [(read_adapter(path), 1.0)], build=build)


def change_tensors(path: Path, change: Callable[[Tensors], Tensors]) -> None:
    file = path / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        *(
            ({"peft_type": method}, f"'{method}', which cannot be merged: it puts learned vectors before the input")
            for method in ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE")
        ),
        ({"peft_type": "ADAPTION_PROMPT"}, "gated prompts"),
        ({"peft_type": "XLORA"}, "router chooses"),
        ({"peft_type": "POLY"}, "router chooses"),
        ({"peft_type": "LILY"}, "experts are mixed"),
        ({"peft_type": "SHADOW"}, "second model"),
        ({"peft_type": "FROD"}, "one width in both towers"),
        ({"peft_type": "ADAMSS"}, "does not know its merge. Allowed: LORA, ADALORA"),
        ({"peft_type": "NEXT_IDEA"}, "does not know its merge"),
        ({"peft_type": None}, "None, which cannot be merged"),
        ({"next_idea": 3}, "next_idea .* is 3, a setting that PEFT .* does not know for IA3"),
        (
            {"auto_mapping": {"base_model_class": "BlipModel", "parent_library": "transformers.models.blip.modeling"}},
            "BlipModel .*family 'blip'",
        ),
    ],
)
def test_methods_and_settings(settings: dict[str, Any], words: str, adapter: Path) -> None:
    set_config(adapter, feedforward_modules=None, **settings)
    with pytest.raises(AdapterError, match=words):
        read_adapter(adapter)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"init_lora_weights": "pissa_niter_4"}, "draws at random, another one at every load"),
        ({"init_lora_weights": "corda"}, "depends on data that the adapter does not hold"),
        ({"init_lora_weights": "lora_ga"}, "depends on gradients"),
        ({"init_lora_weights": "loftq"}, "quantized base weights"),
        ({"init_lora_weights": "new_init"}, "it is unknown. Allowed: True, False, .*pissa, olora"),
        ({"alora_invocation_tokens": [1, 2]}, "aLoRA"),
        ({"arrow_config": {"top_k": 2}}, "routes"),
    ],
)
def test_lora_whose_start_changed_the_base(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = train(tmp_path / "a", "hf", "LORA, pissa").path
    set_config(path, **settings)
    with pytest.raises(AdapterError, match=words):
        read_adapter(path)


def test_pissa_at_random_is_refused_rightly(tmp_path: Path) -> None:
    """PEFT itself does not find its trained model again."""
    from lora_models import hf_embeddings, largest_difference, plain_model, quiet

    trained = train_adapter(tmp_path / "a", "hf", STATE_DICT, target_modules=["fc1"], init_lora_weights="pissa_niter_4")
    again = plain_model("hf", STATE_DICT)
    with quiet():
        from peft import PeftModel

        PeftModel.from_pretrained(again, trained.path).eval()
    assert largest_difference(hf_embeddings(again), trained.embeddings) > 1e-2


def test_answers_that_are_drawn(tmp_path: Path) -> None:
    path = train(tmp_path / "a", "hf", "PVERA", sample_at_inference=True).path
    with pytest.raises(AdapterError, match="sample_at_inference .* every answer random"):
        read_adapter(path)


def test_broken_files(adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AdapterError, match="cannot be read.*copy or download it again"):
        read_adapter(adapter)
    file.unlink()
    with pytest.raises(AdapterError, match="has none of adapter_model"):
        read_adapter(adapter)


def test_values_that_are_not_finite(adapter: Path) -> None:
    change_tensors(adapter, lambda given: {key: value.fill_(torch.nan) for key, value in given.items()})
    with pytest.raises(AdapterError, match="8 tensors .* NaN or infinity"):
        read_adapter(adapter)


def test_names_without_pefts_prefix(adapter: Path) -> None:
    change_tensors(adapter, lambda given: {key.removeprefix("base_model."): value for key, value in given.items()})
    with pytest.raises(AdapterError, match="do not start with"):
        read_adapter(adapter)


def test_tensors_that_peft_would_pass_over(adapter: Path) -> None:
    def deeper(given: Tensors) -> Tensors:
        return {**given, **{key.replace("layers.1", "layers.7"): v.clone() for key, v in given.items()}}

    change_tensors(adapter, deeper)
    with pytest.raises(AdapterError, match=r"4 tensors have no place \(first: .*layers\.7"):
        merge(adapter)


def test_tensors_that_are_missing(adapter: Path) -> None:
    change_tensors(adapter, lambda given: dict(list(given.items())[1:]))
    with pytest.raises(AdapterError, match="lacks 1 of the"):
        merge(adapter)


def test_adapter_of_another_model(adapter: Path) -> None:
    set_config(adapter, base_model_name_or_path="someone/clip-small")
    wider = new_model({**MODEL_CFG, "vision_cfg": {**MODEL_CFG["vision_cfg"], "width": 96}}).state_dict()
    with pytest.raises(AdapterError, match=r"cannot fold .*IA3.*size mismatch.*someone/clip-small"):
        merge(adapter, wider)


def test_modules_that_the_model_does_not_have(adapter: Path) -> None:
    set_config(adapter, target_modules=["no_such_layer"], feedforward_modules=[])
    with pytest.raises(AdapterError, match=r"cannot fold .*no_such_layer"):
        merge(adapter)


def test_tower_that_cannot_be_told(tmp_path: Path) -> None:
    path = train(tmp_path / "a", "hf", "IA3", part="text_model").path
    set_config(path, auto_mapping=None)
    with pytest.raises(AdapterError, match="fits both; add .*auto_mapping"):
        merge(path)


def test_model_is_needed_for_names_of_open_clip(tmp_path: Path) -> None:
    path = train(tmp_path / "a", "open_clip", "IA3").path
    with pytest.raises(AdapterError, match="needs the model; give merge_adapters its `build`"):
        merge_adapters(STATE_DICT, [(read_adapter(path), 1.0)])


def test_second_adapter_is_checked_before_the_first_is_merged(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tritonclip_export.adapters.lora import change

    plain = read_adapter(train_adapter(adapter.parent / "lora", "hf", STATE_DICT, target_modules=["fc1"]).path)
    set_config(adapter, target_modules=["no_such_layer"], feedforward_modules=[])

    def never(*_: object) -> None:
        raise AssertionError("folded before everything was checked")

    monkeypatch.setattr(change, "weight_delta", never)
    with pytest.raises(AdapterError, match="no_such_layer"):
        merge_adapters(STATE_DICT, [(plain, 1.0), (read_adapter(adapter), 1.0)])


@pytest.mark.parametrize("kind", ["IA3", "LORA"])
def test_only_what_peft_itself_refuses_makes_the_reference_unavailable(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    if kind == "LORA":
        train_adapter(path, "hf", STATE_DICT, target_modules=["fc1"])
    else:
        train(path, "hf", kind)
    given = [(read_adapter(path), 1.0)]
    set_config(path, target_modules=["no_such_layer"], feedforward_modules=[])
    with pytest.raises(ReferenceUnavailable, match=r"cannot run .* unmerged: .*no_such_layer"):
        unmerged_reference(MODEL_CFG, STATE_DICT, given)
    for fault in (ValueError("a fault of ours"), KeyError("another"), RuntimeError("one of torch")):

        def broken(*_: object, error: Exception = fault, **__: object) -> None:
            raise error

        monkeypatch.setattr(module, "_is_pefts_directory", broken)
        with pytest.raises(type(fault)):
            unmerged_reference(MODEL_CFG, STATE_DICT, given)
