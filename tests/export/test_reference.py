"""The unmerged reference is PEFT's own forward, or says that PEFT has none."""

from __future__ import annotations

from dataclasses import replace
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
from tritonclip_export.errors import AdapterError
from tritonclip_export.frameworks import torch
from tritonclip_export.parity.probes import CHUNK
from tritonclip_export.parity.reference import Reference, ReferenceUnavailable, unmerged_reference

STATE_DICT = random_state_dict()


def reference(*adapters: tuple[Adapter, float]) -> Reference:
    return unmerged_reference(MODEL_CFG, STATE_DICT, adapters)


def embeddings(given: Reference) -> Embeddings:
    return given.encode_image(images()), given.encode_text(texts())


def train(path: Path, namespace: str, **config: Any) -> Adapter:
    return read_adapter(train_adapter(path, namespace, STATE_DICT, **config).path)


def test_without_adapters_it_is_open_clip() -> None:
    given = reference()
    assert largest_difference(embeddings(given), open_clip_embeddings(STATE_DICT)) == 0
    assert given.description == "float32 PyTorch, open_clip"


CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "open_clip attn": ("open_clip", {"target_modules": ["attn", "c_fc"]}),
    "open_clip visual": ("open_clip", {"part": "visual", "target_modules": ["attn"]}),
    "open_clip modules_to_save": ("open_clip", {"target_modules": ["c_fc"], "modules_to_save": ["ln_final"]}),
    "hf dora": ("hf", {"target_modules": ["q_proj"], "use_dora": True}),
    "hf bias": ("hf", {"target_modules": ["q_proj"], "bias": "all"}),
    "hf all-linear": ("hf", {"target_modules": "all-linear"}),
    "hf one tower": ("hf", {"part": "vision_model", "target_modules": ["fc1"]}),
    "hf task": ("hf", {"target_modules": ["fc1"], "task_type": "FEATURE_EXTRACTION"}),
    "hf not zero at first": (
        "hf",
        {"part": "text_model", "target_modules": ["fc1"], "init_lora_weights": False},
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_pefts_forward(name: str, tmp_path: Path) -> None:
    namespace, config = CONFIGS[name]
    trained = train_adapter(tmp_path / "a", namespace, STATE_DICT, **config)
    given = reference((read_adapter(trained.path), 1.0))
    assert largest_difference(embeddings(given), trained.embeddings) <= 1e-6
    assert largest_difference(trained.embeddings, open_clip_embeddings(STATE_DICT)) > 1e-2


FILES: dict[str, tuple[str, dict[str, Any]]] = {
    "open_clip attn": ("open_clip", {"target_modules": ["attn"], "rank_pattern": {"visual.*attn": 3}}),
    "open_clip visual": ("open_clip", {"target_modules": r"visual\.transformer\.resblocks\.0\.mlp\.c_fc"}),
    "hf patterns": ("hf", {"target_modules": ["q_proj", "fc1"], "alpha_pattern": {"layers.1.*fc1": 20}}),
    "hf dora, rslora": ("hf", {"target_modules": ["q_proj"], "use_dora": True, "use_rslora": True}),
    "hf embedding": ("hf", {"target_modules": ["token_embedding"]}),
}


@pytest.mark.parametrize("name", FILES)
def test_adapters_that_are_no_directory_of_pefts_run_in_peft_too(name: str, tmp_path: Path) -> None:
    namespace, config = FILES[name]
    trained = train_adapter(tmp_path / "a", namespace, STATE_DICT, **config)
    adapter = read_adapter(trained.path / "adapter_model.safetensors")
    assert largest_difference(embeddings(reference((adapter, 1.0))), trained.embeddings) <= 1e-6


def test_several_of_them_with_weights(tmp_path: Path) -> None:
    targets = (["q_proj"], ["q_proj", "fc1"])
    paths = [train(tmp_path / str(i), "hf", target_modules=modules).path for i, modules in enumerate(targets)]
    as_files = [read_adapter(path / "adapter_model.safetensors") for path in paths]
    as_directories = [read_adapter(path) for path in paths]
    one, other = (embeddings(reference((a, 0.5), (b, -2.0))) for a, b in (as_files, as_directories))
    assert largest_difference(one, other) <= 1e-6


def test_whole_tensors_without_pefts_config_are_unavailable(tmp_path: Path) -> None:
    path = train(tmp_path / "a", "hf", target_modules=["fc1"], modules_to_save=["visual_projection"]).path
    adapter = read_adapter(path / "adapter_model.safetensors")
    with pytest.raises(ReferenceUnavailable, match="replaces whole tensors"):
        reference((adapter, 1.0))
    merge_adapters(STATE_DICT, [(adapter, 1.0)])


def test_embeddings_are_float32_normalized_and_take_either_integer(tmp_path: Path) -> None:
    given = reference((train(tmp_path / "a", "hf", target_modules=["q_proj"]), 1.0))
    image, text = embeddings(given)
    for tensor in (image, text):
        assert tensor.dtype == torch.float32
        assert torch.allclose(tensor.norm(dim=-1), torch.ones(len(tensor)), atol=1e-6)
    assert torch.equal(given.encode_text(texts().int()), text)


def test_it_does_not_drift_when_called_often(tmp_path: Path) -> None:
    """PEFT adds and subtracts the attention's deltas around every forward."""
    given = reference((train(tmp_path / "a", "open_clip", target_modules=["attn"]), 1.0))
    first = embeddings(given)
    for _ in range(50):
        last = embeddings(given)
    assert largest_difference(first, last) <= 2e-6


@pytest.mark.parametrize("config", [{"init_lora_weights": "olora"}, {"bias": "all"}], ids=str)
@pytest.mark.parametrize("namespace", ["hf", "open_clip"])
def test_the_weights_it_was_made_of_stay(namespace: str, config: dict[str, Any], tmp_path: Path) -> None:
    """PEFT writes into a model's weights when it loads these, and the merge that follows reads them."""
    adapter = train(tmp_path / "a", namespace, target_modules=["fc1", "c_fc"], **config)
    own = {name: tensor.clone() for name, tensor in STATE_DICT.items()}
    embeddings(unmerged_reference(MODEL_CFG, own, [(adapter, 1.0)]))
    assert [name for name, tensor in own.items() if not torch.equal(tensor, STATE_DICT[name])] == []


def test_half_precision_weights_are_run_in_float32(tmp_path: Path) -> None:
    half = {name: tensor.half() for name, tensor in STATE_DICT.items()}
    adapters = [(train(tmp_path / "a", "hf", target_modules=["q_proj"]), 1.0)]
    in_float32 = {name: tensor.float() for name, tensor in half.items()}
    one, other = (embeddings(unmerged_reference(MODEL_CFG, weights, adapters)) for weights in (half, in_float32))
    assert largest_difference(one, other) == 0


def unavailable(tmp_path: Path, name: str) -> list[tuple[Adapter, float]]:
    plain = {"target_modules": ["fc1"]}
    make: dict[str, list[tuple[str, dict[str, Any], float]]] = {
        "two libraries": [("hf", plain, 1.0), ("open_clip", {"target_modules": ["c_fc"]}, 1.0)],
        "dora with weight": [("hf", {**plain, "use_dora": True}, 0.5)],
        "dora beside another": [("hf", {**plain, "use_dora": True}, 1.0), ("hf", plain, 1.0)],
        "bias with weight": [("hf", {**plain, "bias": "all"}, 2.0)],
        "modules_to_save twice": [("hf", {**plain, "modules_to_save": ["text_projection"]}, 1.0)] * 2,
        "tower inside a whole CLIP": [("hf", plain, 1.0), ("hf", {**plain, "part": "text_model"}, 1.0)],
    }
    return [
        (train(tmp_path / str(index), namespace, **config), weight)
        for index, (namespace, config, weight) in enumerate(make[name])
    ]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("two libraries", "no one model runs both"),
        ("dora with weight", "only alone and with weight 1"),
        ("dora beside another", "only alone and with weight 1"),
        ("bias with weight", "only alone and with weight 1"),
        ("modules_to_save twice", "only alone and with weight 1"),
        ("tower inside a whole CLIP", "cannot nest"),
    ],
)
def test_what_peft_cannot_run_is_said_and_still_merges(name: str, words: str, tmp_path: Path) -> None:
    adapters = unavailable(tmp_path, name)
    with pytest.raises(ReferenceUnavailable, match=words) as caught:
        reference(*adapters)
    assert isinstance(caught.value, AdapterError)
    assert "merge itself is possible" in str(caught.value)
    merge_adapters(STATE_DICT, adapters)


def test_a_tensor_that_peft_does_not_find_is_not_passed_over(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    adapter = train(tmp_path / "a", "hf", target_modules=["fc1"])
    weights = adapter.path / "adapter_model.safetensors"
    kept = dict(list(load_file(weights).items())[2:])
    save_file(kept, weights)
    with pytest.raises(AdapterError, match=r"lacks 2 of the \d+ tensors .*--allow-partial-adapter") as caught:
        reference((read_adapter(adapter.path), 1.0))
    assert not isinstance(caught.value, ReferenceUnavailable)
    partial = replace(read_adapter(adapter.path), may_be_partial=True)
    merged = merge_adapters(STATE_DICT, [(partial, 1.0)]).state_dict
    assert largest_difference(embeddings(reference((partial, 1.0))), open_clip_embeddings(merged)) <= 1e-6


def test_a_tensor_of_modules_to_save_that_is_missing_is_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    adapter = train(tmp_path / "a", "open_clip", target_modules=["c_fc"], modules_to_save=["ln_final"])
    weights = adapter.path / "adapter_model.safetensors"
    save_file({key: value for key, value in load_file(weights).items() if "ln_final.weight" not in key}, weights)
    with pytest.raises(
        AdapterError, match=r"lacks base_model\.model\.ln_final\.weight, which its adapter_config\.json asks"
    ):
        reference((read_adapter(adapter.path), 1.0))


def test_many_probes_are_embedded_a_few_at_a_time_and_in_order() -> None:
    seen: list[int] = []

    def features(inputs: torch.Tensor) -> torch.Tensor:
        seen.append(len(inputs))
        return inputs.float()

    inputs = torch.rand(2 * CHUNK + 3, 5)
    embedded = Reference("the inputs themselves", features, features).encode_image(inputs)
    assert seen == [CHUNK, CHUNK, 3]
    assert torch.equal(embedded, torch.nn.functional.normalize(inputs, dim=-1))
