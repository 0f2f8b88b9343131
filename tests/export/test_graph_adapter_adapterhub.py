"""Adapters that AdapterHub's library saved, against the features that the library itself computed with them.

tests/golden/make_adapterhub.py wrote both.
"""

import json
import shutil
from pathlib import Path

import pytest

from graph_adapter_models import (
    GOLDEN,
    MEAN,
    MODEL_CFG,
    STD,
    build,
    golden,
    image_features,
    input_ids,
    pixel_values,
    state_dict,
    text_features,
)
from graph_adapter_references import add_bottlenecks, hf_clip, hf_image_features, hf_text_features
from tritonclip_export.adapters.graph import is_graph_adapter, read_graph_adapter
from tritonclip_export.checkpoints.model import new_model
from tritonclip_export.errors import AdapterError
from tritonclip_export.frameworks import torch
from tritonclip_export.towers.towers import served_towers

CASES = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir() and path.name != "vision_class")
TOLERANCE = 2e-5


def copy(case: str, folder: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / case, folder / case))


def set_config(path: Path, file: str = "adapter_config.json", **settings) -> None:
    raw = json.loads((path / file).read_text())
    raw["config"].update(settings)
    (path / file).write_text(json.dumps(raw))


def set_tensors(path: Path, change) -> None:
    tensors = torch.load(path / "pytorch_adapter.bin", weights_only=True)
    torch.save(change(tensors), path / "pytorch_adapter.bin")


def test_the_plain_model_is_the_golden_one() -> None:
    model = build()
    assert (image_features(model) - golden("plain", "image")).abs().max() < TOLERANCE
    assert (text_features(model) - golden("plain", "text")).abs().max() < TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_features_equal_those_of_adapterhub(case: str) -> None:
    model = build()
    assert is_graph_adapter(GOLDEN / case)
    read_graph_adapter(GOLDEN / case).attach(model)
    assert (image_features(model) - golden(case, "image")).abs().max() < TOLERANCE
    assert (text_features(model) - golden(case, "text")).abs().max() < TOLERANCE
    # Every case changes the image tower by far more than the tolerance, so none passes by doing nothing.
    assert (golden(case, "image") - golden("plain", "image")).abs().max() > 0.1


def test_the_formula_is_adapterhubs() -> None:
    """The one that served adapters are compared with."""
    model = hf_clip()
    add_bottlenecks(model, GOLDEN / "pfeiffer")
    assert (hf_image_features(model, pixel_values()) - golden("pfeiffer", "image")).abs().max() < TOLERANCE
    assert (hf_text_features(model, input_ids()) - golden("pfeiffer", "text")).abs().max() < TOLERANCE


def test_an_adapter_of_the_vision_class_alone() -> None:
    model = build()
    read_graph_adapter(GOLDEN / "vision_class").attach(model)
    assert (image_features(model) - golden("vision_class", "image")).abs().max() < TOLERANCE
    assert torch.equal(text_features(model), text_features(build()))


def test_a_custom_text_clip_is_adapted_alike() -> None:
    towers = ("visual.", "logit_scale")
    renamed = {key if key.startswith(towers) else f"text.{key}": value for key, value in state_dict().items()}
    model = build({**MODEL_CFG, "custom_text": True}, renamed)
    read_graph_adapter(GOLDEN / "houlsby").attach(model)
    assert (text_features(model) - golden("houlsby", "text")).abs().max() < TOLERANCE


def test_attaches_also_after_the_attention_was_replaced() -> None:
    for case in ("houlsby", "lora", "ia3", "fusion"):
        model = build()
        served_towers(model, MODEL_CFG, MEAN, STD)
        read_graph_adapter(GOLDEN / case).attach(model)
        assert (image_features(model) - golden(case, "image")).abs().max() < TOLERANCE, case
        assert (text_features(model) - golden(case, "text")).abs().max() < TOLERANCE, case


@pytest.mark.parametrize("case", ["lora", "ia3", "houlsby"])
def test_the_weights_that_the_model_was_built_from_stay_as_they_were(case: str) -> None:
    weights = state_dict()
    for _ in range(2):
        # The second model would be adapted twice if the first had changed what both are built from.
        model = build(MODEL_CFG, weights)
        read_graph_adapter(GOLDEN / case).attach(model)
        assert (image_features(model) - golden(case, "image")).abs().max() < TOLERANCE
    assert all(torch.equal(weights[name], tensor) for name, tensor in state_dict().items())


def test_old_files_without_a_version_mean_the_tanh_form_by_gelu(tmp_path: Path) -> None:
    path = copy("norms", tmp_path)
    raw = json.loads((path / "adapter_config.json").read_text())
    del raw["version"]
    raw["config"]["non_linearity"] = "gelu"
    (path / "adapter_config.json").write_text(json.dumps(raw))
    model = build()
    read_graph_adapter(path).attach(model)
    assert (image_features(model) - golden("norms", "image")).abs().max() < TOLERANCE


def test_lora_saved_before_1_1_ignores_alpha(tmp_path: Path) -> None:
    old, plain = copy("lora", tmp_path / "old"), copy("lora", tmp_path / "plain")
    raw = json.loads((old / "adapter_config.json").read_text())
    (old / "adapter_config.json").write_text(json.dumps({**raw, "version": "adapters.1.0.1"}))
    set_config(plain, alpha=raw["config"]["r"])
    models = [build(), build()]
    for model, path in zip(models, (old, plain), strict=True):
        read_graph_adapter(path).attach(model)
    assert torch.equal(image_features(models[0]), image_features(models[1]))


def test_a_fusion_finds_its_adapters_beside_it(tmp_path: Path) -> None:
    path = copy("fusion", tmp_path)
    for name in ("one", "two"):
        shutil.move(path / name, tmp_path / name)
    model = build()
    read_graph_adapter(path).attach(model)
    assert (image_features(model) - golden("fusion", "image")).abs().max() < TOLERANCE
    shutil.rmtree(tmp_path / "two")
    with pytest.raises(AdapterError, match="fuses the adapter 'two', which is neither at .* save it there"):
        read_graph_adapter(path)


def test_the_digest_follows_weights_and_settings(tmp_path: Path) -> None:
    path, again = copy("pfeiffer", tmp_path / "a"), copy("pfeiffer", tmp_path / "b")
    first = read_graph_adapter(path).digest()
    assert first == read_graph_adapter(again).digest()
    set_config(path, scaling=2.0)
    assert read_graph_adapter(path).digest() != first
    set_tensors(again, lambda tensors: {name: tensor * 2 for name, tensor in tensors.items()})
    assert read_graph_adapter(again).digest() != first


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"non_linearity": "swiglu"}, "non_linearity in .* is 'swiglu'; allowed: relu"),
        ({"phm_layer": True}, "phm_layer .* Compacter"),
        ({"use_gating": True}, "use_gating .* mean over all tokens"),
        ({"inv_adapter": "nice"}, "inv_adapter .* token embeddings"),
        ({"cross_adapter": True}, "cross_adapter .* needs? both inputs"),
        ({"residual_before_ln": "post_add"}, "residual_before_ln .* allowed: true, false"),
        ({"scaling": "huge"}, "scaling .* allowed: a number, learned, channel"),
        ({"router": 3}, "router .* unknown to this version"),
        ({"architecture": "prefix_tuning"}, "AdapterHub's prefix_tuning, which cannot be served"),
        ({"architecture": "reft"}, "AdapterHub's reft, which cannot be served"),
        ({"architecture": "union", "configs": []}, "AdapterHub's union, which cannot be served"),
        ({"architecture": "next"}, "AdapterHub's 'next', which this version does not know"),
    ],
)
def test_settings_that_cannot_be_served_are_refused(settings: dict, message: str, tmp_path: Path) -> None:
    path = copy("pfeiffer", tmp_path)
    set_config(path, **settings)
    with pytest.raises(AdapterError, match=message):
        read_graph_adapter(path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "use_dora .* its merge does not agree with its forward"),
        ({"use_gating": True}, "use_gating .* depends on the input"),
        ({"vera_d": 0.1}, "vera_d .* PEFT's VeraConfig"),
        ({"composition_mode": "swap"}, "composition_mode .* allowed: add, scale"),
        ({"alpha": 0}, "r and alpha .* above 0"),
    ],
)
def test_lora_that_cannot_be_merged_is_refused(settings: dict, message: str, tmp_path: Path) -> None:
    path = copy("lora", tmp_path)
    set_config(path, **settings)
    with pytest.raises(AdapterError, match=message):
        read_graph_adapter(path)


def test_a_fusion_with_a_temperature_is_refused(tmp_path: Path) -> None:
    path = copy("fusion", tmp_path)
    set_config(path, "adapter_fusion_config.json", temperature=True)
    with pytest.raises(AdapterError, match="temperature, which the library lowers at every call"):
        read_graph_adapter(path)


def without_layer_one(tensors: dict) -> dict:
    return {name: tensor for name, tensor in tensors.items() if "vision_model.encoder.layers.1." not in name}


def with_layer_two(tensors: dict) -> dict:
    return {**tensors, **{name.replace("layers.1.", "layers.2."): tensor for name, tensor in tensors.items()}}


def wider(tensors: dict) -> dict:
    return {name: torch.cat([tensor, tensor]) if "adapter_up" in name else tensor for name, tensor in tensors.items()}


def without_a_bias(tensors: dict) -> dict:
    return {name: tensor for name, tensor in tensors.items() if "layers.0" not in name or "down.0.bias" not in name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_layer_one, r"has nothing for layer 1 of the vision tower \(output; 1 missing in all\)"),
        (with_layer_two, "adapts layer 2 of the text tower, and the model's has 2 layers"),
        (wider, r"adapter_up.weight is of shape \(32, 4\), and the text tower is 16 wide"),
        (without_a_bias, "adapter_down.0.bias is missing; give"),
        (lambda tensors: {**tensors, "text_model.prompt": torch.ones(1)}, "text_model.prompt in .* no layer of CLIP"),
    ],
)
def test_what_does_not_fit_is_named_and_the_model_stays_as_it_was(change, message: str, tmp_path: Path) -> None:
    path = copy("pfeiffer", tmp_path)
    set_tensors(path, change)
    model = build()
    with pytest.raises(AdapterError, match=message):
        read_graph_adapter(path).attach(model)
    assert torch.equal(image_features(model), image_features(build()))
    assert torch.equal(text_features(model), text_features(build()))


def test_towers_that_cannot_take_it_are_refused() -> None:
    deeper = new_model({**MODEL_CFG, "vision_cfg": {**MODEL_CFG["vision_cfg"], "layers": 3}})
    with pytest.raises(AdapterError, match="nothing for layer 2 of the vision tower"):
        read_graph_adapter(GOLDEN / "pfeiffer").attach(deeper)
    resnet = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}
    with pytest.raises(AdapterError, match="vision tower is of ModifiedResNet, without CLIP's plain"):
        read_graph_adapter(GOLDEN / "vision_class").attach(
            new_model({**MODEL_CFG, "embed_dim": 32, "vision_cfg": resnet})
        )
    model = build()
    read_graph_adapter(GOLDEN / "pfeiffer").attach(model)
    with pytest.raises(AdapterError, match="has adapters already.*AdapterFusion"):
        read_graph_adapter(GOLDEN / "houlsby").attach(model)


def test_folders_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="does not exist"):
        read_graph_adapter(tmp_path / "nothing")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(AdapterError, match="holds no adapter"):
        read_graph_adapter(empty)
    (empty / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert not is_graph_adapter(empty)
    (empty / "adapter_config.json").write_text('{"config": {}, "name": "x"}')
    with pytest.raises(AdapterError, match=r"has none of pytorch_adapter.bin, adapter.safetensors"):
        read_graph_adapter(empty)
    (empty / "adapter_config.json").write_text("{")
    with pytest.raises(AdapterError, match="not readable JSON"):
        read_graph_adapter(empty)
