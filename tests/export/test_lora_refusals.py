"""Adapters that are broken or of another model are refused by name, before anything is merged."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from lora_models import MODEL_CFG, random_state_dict, set_config, train_adapter
from tritonclip_export.adapters.lora import Adapter, merge_adapters, read_adapter
from tritonclip_export.checkpoints.model import new_model
from tritonclip_export.errors import AdapterError
from tritonclip_export.frameworks import torch

STATE_DICT = random_state_dict()
PREFIX = "base_model.model."
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return train_adapter(tmp_path / "adapter", "hf", STATE_DICT, target_modules=["q_proj", "fc1"]).path


@pytest.fixture
def native_adapter(tmp_path: Path) -> Path:
    return train_adapter(tmp_path / "adapter", "open_clip", STATE_DICT, target_modules=["attn", "c_fc"]).path


def change_tensors(path: Path, change: Callable[[Tensors], Tensors]) -> None:
    file = path / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)


def merge(path: Path, weight: float = 1.0) -> None:
    merge_adapters(STATE_DICT, [(read_adapter(path), weight)])


def test_path_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="does not exist"):
        read_adapter(tmp_path / "nothing")


def test_missing_weights(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterError, match=r"none of adapter_model\.safetensors, adapter_model\.bin"):
        read_adapter(adapter)


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.99])
def test_file_cut_off(kept: float, safe: bool, tmp_path: Path) -> None:
    path = train_adapter(tmp_path / "a", "hf", STATE_DICT, target_modules=["fc1"], safe=safe).path
    (file,) = path.glob("adapter_model.*")
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(AdapterError, match="cannot be read.*copy or download it again") as caught:
        read_adapter(path)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, torch.float8_e4m3fn])
def test_quantized_factors(dtype: torch.dtype, adapter: Path) -> None:
    """Read as they stand, they would be merged as other numbers than were trained."""
    change_tensors(adapter, lambda given: {key: tensor.to(dtype) for key, tensor in given.items()})
    with pytest.raises(AdapterError, match=rf"are {dtype} \(first: .*lora_A.*in 16 or 32 bits"):
        read_adapter(adapter)


def test_file_that_would_run_code(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    torch.save({"a": Path("x")}, adapter / "adapter_model.bin")
    with pytest.raises(AdapterError, match="would run code"):
        read_adapter(adapter)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite(value: float, adapter: Path) -> None:
    change_tensors(adapter, lambda given: {k: v.fill_(value) if "fc1" in k else v for k, v in given.items()})
    with pytest.raises(AdapterError, match="8 tensors .* NaN or infinity .*fc1"):
        read_adapter(adapter)


def test_names_of_another_family(adapter: Path) -> None:
    def rename(given: Tensors) -> Tensors:
        return {f"{PREFIX}roberta.layer.{i}.lora_A.weight": v for i, v in enumerate(given.values())}

    change_tensors(adapter, rename)
    with pytest.raises(AdapterError, match="no names of open_clip's CLIP and Hugging Face's"):
        read_adapter(adapter)


def test_names_of_both_libraries(adapter: Path) -> None:
    change_tensors(adapter, lambda given: {**given, f"{PREFIX}visual.conv1.weight": torch.ones(1)})
    with pytest.raises(AdapterError, match="names of both"):
        read_adapter(adapter)


def test_names_without_pefts_prefix(adapter: Path) -> None:
    change_tensors(adapter, lambda given: {key.removeprefix(PREFIX): v for key, v in given.items()})
    with pytest.raises(AdapterError, match="do not start with"):
        read_adapter(adapter)


@pytest.mark.parametrize(("present", "missing"), [("A", "B"), ("B", "A")])
def test_half_a_pair(present: str, missing: str, adapter: Path) -> None:
    key = f"{PREFIX}vision_model.encoder.layers.0.mlp.fc1.lora_{missing}.weight"
    change_tensors(adapter, lambda given: {k: v for k, v in given.items() if k != key})
    with pytest.raises(AdapterError, match=rf"layers\.0\.mlp\.fc1 has lora_{present} but no lora_{missing}"):
        merge(adapter)


def test_modules_that_the_model_does_not_have(adapter: Path) -> None:
    def deeper(given: Tensors) -> Tensors:
        return {**given, **{key.replace("layers.1", "layers.7"): v.clone() for key, v in given.items()}}

    change_tensors(adapter, deeper)
    with pytest.raises(AdapterError, match=r"4 modules or tensors .*first: .*layers\.7.*another model"):
        merge(adapter)


def test_tensors_that_nobody_consumes(native_adapter: Path) -> None:
    key = f"{PREFIX}transformer.resblocks.0.mlp.c_fc.lora_C.weight"
    change_tensors(native_adapter, lambda given: {**given, key: torch.ones(2)})
    with pytest.raises(AdapterError, match=r"1 modules or tensors .*c_fc\.lora_C\.weight"):
        merge(native_adapter)


def wider() -> Tensors:
    vision = {**MODEL_CFG["vision_cfg"], "width": 96}
    return new_model({**MODEL_CFG, "vision_cfg": vision}).state_dict()


@pytest.mark.parametrize("namespace", ["hf", "open_clip"])
def test_adapter_for_another_model_names_both_shapes(namespace: str, tmp_path: Path) -> None:
    targets = {"hf": ["q_proj"], "open_clip": ["attn"]}[namespace]
    path = train_adapter(tmp_path / "a", namespace, STATE_DICT, target_modules=targets).path
    set_config(path, base_model_name_or_path="someone/clip-small")
    shapes = {"hf": r"\(4, 64\).*\(96, 96\)", "open_clip": r"\(4, 64\).*\(96, 96\)"}[namespace]
    with pytest.raises(AdapterError, match=rf"lora_A of .* is {shapes}.*another model.*someone/clip-small"):
        merge_adapters(wider(), [(read_adapter(path), 1.0)])


def test_rank_that_is_not_the_configs(adapter: Path) -> None:
    set_config(adapter, r=8)
    with pytest.raises(AdapterError, match=r"is \(4, \d+\).*at rank 8"):
        merge(adapter)


@pytest.mark.parametrize(
    ("config", "change", "words"),
    [
        ({"use_dora": True}, {"use_dora": False}, "has a DoRA magnitude, but use_dora is False"),
        ({}, {"use_dora": True}, "has no DoRA magnitude, but use_dora is True"),
        ({"lora_bias": True}, {"lora_bias": False}, "has a bias of lora_B, but lora_bias is False"),
        ({}, {"lora_bias": True}, "has no bias of lora_B, but lora_bias is True"),
    ],
)
def test_config_of_another_adapter(config: dict[str, Any], change: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = train_adapter(tmp_path / "a", "hf", STATE_DICT, target_modules=["fc1"], **config).path
    set_config(path, **change)
    with pytest.raises(AdapterError, match=words):
        merge(path)


def test_lora_bias_where_no_bias_can_hold_it(tmp_path: Path) -> None:
    path = train_adapter(tmp_path / "a", "hf", STATE_DICT, target_modules=["visual_projection"], lora_bias=True).path
    with pytest.raises(AdapterError, match="visual_projection .* no bias to hold it"):
        merge(path)


def test_saved_module_of_another_shape(tmp_path: Path) -> None:
    settings = {"target_modules": ["fc1"], "modules_to_save": ["visual_projection"]}
    path = train_adapter(tmp_path / "a", "hf", STATE_DICT, **settings).path
    with pytest.raises(AdapterError, match=r"another model|visual_projection\.weight .* is \(32, 64\)"):
        merge_adapters(wider(), [(read_adapter(path), 1.0)])


@pytest.mark.parametrize("tokens", [[3], [3, 5000], [3, -1], []])
def test_token_rows_that_do_not_fit(tokens: list[int], tmp_path: Path) -> None:
    settings = {"target_modules": ["fc1"], "trainable_token_indices": {"token_embedding": [3, 5]}}
    path = train_adapter(tmp_path / "a", "hf", STATE_DICT, **settings).path
    set_config(path, trainable_token_indices={"token_embedding": tokens})
    with pytest.raises(AdapterError, match="trainable_tokens_delta"):
        merge(path)


def test_tower_that_cannot_be_told(tmp_path: Path) -> None:
    square = {**MODEL_CFG, "text_cfg": {**MODEL_CFG["text_cfg"], "width": 64}}
    settings = {"part": "vision_model", "target_modules": ["q_proj"], "task_type": "FEATURE_EXTRACTION"}
    path = train_adapter(tmp_path / "a", "hf", STATE_DICT, **settings).path
    both = new_model(square).state_dict()
    with pytest.raises(AdapterError, match="fits both; add .*auto_mapping"):
        merge_adapters(both, [(read_adapter(path), 1.0)])
    set_config(path, auto_mapping={"base_model_class": "CLIPVisionModel"})
    merged = merge_adapters(both, [(read_adapter(path), 1.0)]).state_dict
    changed = {name for name in both if not torch.equal(merged[name], both[name])}
    assert changed == {f"visual.transformer.resblocks.{layer}.attn.in_proj_weight" for layer in (0, 1)}


def test_open_clip_blocks_that_both_towers_have(tmp_path: Path) -> None:
    square = {**MODEL_CFG, "text_cfg": {**MODEL_CFG["text_cfg"], "width": 64}}
    path = train_adapter(tmp_path / "a", "open_clip", STATE_DICT, part="visual", target_modules=["c_fc"]).path
    both = new_model(square).state_dict()
    set_config(path, auto_mapping=None)
    with pytest.raises(AdapterError, match="blocks that both towers have.*auto_mapping"):
        merge_adapters(both, [(read_adapter(path), 1.0)])
    set_config(path, auto_mapping={"base_model_class": "VisionTransformer"})
    merged = merge_adapters(both, [(read_adapter(path), 1.0)]).state_dict
    changed = {name for name in both if not torch.equal(merged[name], both[name])}
    assert changed == {f"visual.transformer.resblocks.{layer}.mlp.c_fc.weight" for layer in (0, 1)}


@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf])
def test_weight_that_is_not_finite(weight: float, adapter: Path) -> None:
    with pytest.raises(AdapterError, match="give a finite number"):
        merge(adapter, weight)


def test_merge_that_overflows_the_bases_dtype(adapter: Path) -> None:
    half = {name: tensor.half() for name, tensor in STATE_DICT.items()}
    with pytest.raises(AdapterError, match=r"is not finite in torch\.float16"):
        merge_adapters(half, [(read_adapter(adapter), 1e6)])


def test_second_adapter_is_checked_before_the_first_is_merged(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tritonclip_export.adapters.lora import change as module

    good = read_adapter(adapter)
    unfit = Adapter(good.path, good.settings, good.namespace, {"text_model.x.weight": torch.ones(1)}, good.files)

    def never(*_: object) -> None:
        raise AssertionError("folded before everything was checked")

    monkeypatch.setattr(module, "weight_delta", never)
    with pytest.raises(AdapterError, match=r"text_model\.x\.weight"):
        merge_adapters(STATE_DICT, [(good, 1.0), (unfit, 1.0)])
