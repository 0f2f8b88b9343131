"""Several adapters with weights, low-precision bases, and what the report says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from lora_models import (
    MODEL_CFG,
    Embeddings,
    images,
    largest_difference,
    open_clip_embeddings,
    random_state_dict,
    texts,
    train_adapter,
)
from tritonclip_export.adapters.lora import Adapter, merge_adapters, read_adapter
from tritonclip_export.frameworks import torch
from tritonclip_export.parity.reference import unmerged_reference

TOLERANCE = 2e-5
STATE_DICT = random_state_dict()
Weighted = list[tuple[Adapter, float]]


def train(path: Path, namespace: str, seed: int = 7, **config: Any) -> Adapter:
    return read_adapter(train_adapter(path, namespace, STATE_DICT, seed=seed, **config).path)


def merged(adapters: Weighted) -> dict[str, torch.Tensor]:
    return merge_adapters(STATE_DICT, adapters).state_dict


def by_peft(adapters: Weighted) -> Embeddings:
    reference = unmerged_reference(MODEL_CFG, STATE_DICT, adapters)
    return reference.encode_image(images()), reference.encode_text(texts())


def three(folder: Path, namespace: str) -> Weighted:
    targets = {
        "open_clip": (["attn"], ["attn", "c_fc"], ["conv1", "token_embedding"]),
        "hf": (["q_proj", "fc1"], ["q_proj", "v_proj"], ["patch_embedding", "text_projection"]),
    }[namespace]
    configs: list[dict[str, Any]] = [{"r": 2}, {"use_rslora": True}, {"lora_alpha": 3}]
    weights = (0.5, -0.75, 1.5)
    return [
        (train(folder / str(i), namespace, seed=i, target_modules=modules, **config), weight)
        for i, (modules, config, weight) in enumerate(zip(targets, configs, weights, strict=True))
    ]


@pytest.mark.parametrize("namespace", ["open_clip", "hf"])
def test_weighted_sum_equals_peft_unmerged(namespace: str, tmp_path: Path) -> None:
    adapters = three(tmp_path, namespace)
    embeddings = by_peft(adapters)
    assert largest_difference(embeddings, open_clip_embeddings(STATE_DICT)) > 1e-2
    for left_out in range(3):
        others = [pair for index, pair in enumerate(adapters) if index != left_out]
        assert largest_difference(embeddings, by_peft(others)) > 1e-2
    assert largest_difference(open_clip_embeddings(merged(adapters)), embeddings) <= TOLERANCE


@pytest.mark.parametrize("weight", [0.5, -1.0, 2.0])
@pytest.mark.parametrize("lora_bias", [False, True])
def test_one_adapter_with_a_weight(weight: float, lora_bias: bool, tmp_path: Path) -> None:
    adapter = train(tmp_path / "a", "hf", target_modules=["fc1", "v_proj"], lora_bias=lora_bias)
    given = [(adapter, weight)]
    assert largest_difference(open_clip_embeddings(merged(given)), by_peft(given)) <= TOLERANCE


def test_one_adapter_for_each_tower(tmp_path: Path) -> None:
    text = train(tmp_path / "text", "hf", part="text_model", target_modules=["q_proj"])
    image = train(tmp_path / "image", "hf", part="vision_model", target_modules=["fc1"])
    given = [(text, 1.0), (image, 0.5)]
    assert largest_difference(open_clip_embeddings(merged(given)), by_peft(given)) <= TOLERANCE


def test_sum_is_in_delta_space_for_dora_and_across_libraries(tmp_path: Path) -> None:
    """PEFT cannot run these together; each delta alone is exact, so the sum of the deltas is the truth."""
    dora = train(tmp_path / "dora", "hf", target_modules=["q_proj"], use_dora=True)
    saved = train(tmp_path / "saved", "open_clip", target_modules=["attn"], modules_to_save=["ln_final"])
    together = merged([(dora, 0.5), (saved, -0.25)])
    alone = merged([(dora, 1.0)]), merged([(saved, 1.0)])
    for name, base in STATE_DICT.items():
        wanted = base + 0.5 * (alone[0][name] - base) - 0.25 * (alone[1][name] - base)
        assert torch.allclose(together[name], wanted, atol=1e-5), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_base_is_folded_in_float32_and_cast_last(dtype: torch.dtype, tmp_path: Path) -> None:
    adapters = three(tmp_path, "open_clip")
    low = {name: tensor.to(dtype) for name, tensor in STATE_DICT.items()}
    in_float32 = merge_adapters({name: tensor.float() for name, tensor in low.items()}, adapters).state_dict
    in_low = merge_adapters(low, adapters).state_dict
    for name, tensor in in_low.items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, in_float32[name].to(dtype)), name


def test_low_precision_adapter_is_folded_in_float32(tmp_path: Path) -> None:
    adapter = train(tmp_path / "a", "hf", target_modules=["q_proj"])
    half = {key: tensor.half() for key, tensor in adapter.tensors.items()}
    low = Adapter(adapter.path, adapter.settings, adapter.namespace, half, adapter.files)
    full = {key: tensor.float() for key, tensor in half.items()}
    high = Adapter(adapter.path, adapter.settings, adapter.namespace, full, adapter.files)
    one, other = merged([(low, 1.0)]), merged([(high, 1.0)])
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_base_is_untouched_and_names_keep_their_order(tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in STATE_DICT.items()}
    result = merged(three(tmp_path, "hf"))
    assert list(result) == list(STATE_DICT)
    assert all(torch.equal(STATE_DICT[name], tensor) for name, tensor in before.items())
    assert all(result[name].shape == tensor.shape for name, tensor in before.items())


def test_no_adapters_is_the_base() -> None:
    result = merge_adapters(STATE_DICT, [])
    assert all(torch.equal(result.state_dict[name], tensor) for name, tensor in STATE_DICT.items())
    assert result.report.adapters == ()


def test_report_counts_names_and_measures(tmp_path: Path) -> None:
    adapter = train(tmp_path / "fine", "open_clip", target_modules=["c_fc"], modules_to_save=["ln_final"])
    (report,) = merge_adapters(STATE_DICT, [(adapter, -0.5)]).report.adapters
    assert (report.name, report.namespace, report.weight, report.folded) == ("fine", "open_clip", -0.5, 4)
    assert sorted(report.replaced) == ["ln_final.bias", "ln_final.weight"]
    assert report.skipped == ()
    result = merged([(adapter, -0.5)])
    changed = [name for name in STATE_DICT if not torch.equal(result[name], STATE_DICT[name])]
    change = math.sqrt(sum((result[name] - STATE_DICT[name]).square().sum().item() for name in changed))
    size = math.sqrt(sum(STATE_DICT[name].square().sum().item() for name in changed))
    assert report.relative_norm == pytest.approx(change / size, rel=1e-4)


def test_report_is_json(tmp_path: Path) -> None:
    adapter = train(tmp_path / "a", "open_clip", target_modules=["out_proj", "c_fc"])
    report = merge_adapters(STATE_DICT, [(adapter, 1.0)]).report
    assert json.loads(json.dumps(report.to_dict()))["adapters"][0]["skipped"][0]["reason"]
    assert report.warnings[0].startswith("a: ")


def test_overlapping_alpha_patterns_are_reported(tmp_path: Path) -> None:
    """PEFT sorts the keys when it saves, so its own forward differs before and after a save."""
    patterns = {"vision_model.*": 24, "fc1": 1}
    trained = train_adapter(tmp_path / "a", "hf", STATE_DICT, target_modules=["fc1"], alpha_pattern=patterns)
    given = [(read_adapter(trained.path), 1.0)]
    assert largest_difference(by_peft(given), trained.embeddings) > 1e-2
    result = merge_adapters(STATE_DICT, given)
    assert largest_difference(open_clip_embeddings(result.state_dict), by_peft(given)) <= TOLERANCE
    assert "alpha_pattern" in result.report.warnings[0]


def test_undeclared_tensors_replace_the_base_as_peft_loads_them(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    trained = train_adapter(tmp_path / "a", "hf", STATE_DICT, target_modules=["fc1"])
    weights = trained.path / "adapter_model.safetensors"
    key = "base_model.model.text_projection.weight"
    save_file({**load_file(weights), key: torch.randn(32, 32)}, weights)
    given = [(read_adapter(trained.path), 1.0)]
    result = merge_adapters(STATE_DICT, given)
    assert largest_difference(open_clip_embeddings(result.state_dict), by_peft(given)) <= TOLERANCE
    assert largest_difference(by_peft(given), trained.embeddings) > 1e-2
    assert "modules_to_save" in result.report.warnings[0]
