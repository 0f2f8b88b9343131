"""The serving spec and how it is read off a checkpoint."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from family_checkpoints import chinese_clip
from tiny_clip import MODEL_CFG, PREPROCESS_CFG, tiny_state_dict, write_tiny_checkpoint
from tritonclip_export.checkpoints.checkpoint import Checkpoint
from tritonclip_export.checkpoints.load import load_checkpoint
from tritonclip_export.checkpoints.tokenization import ClipBpe
from tritonclip_export.errors import CheckpointError, SpecError
from tritonclip_export.frameworks import torch
from tritonclip_export.spec import ScoringSpec, ServingSpec, text_buckets
from tritonclip_export.spec_builder import build_spec


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return load_checkpoint(str(write_tiny_checkpoint(tmp_path / "tiny")))


def test_every_number_comes_from_the_checkpoint(checkpoint: Checkpoint) -> None:
    spec = build_spec(checkpoint, checkpoint.state_dict)
    assert (spec.name, spec.embedding_dim) == ("tiny", 24)
    assert (spec.image.height, spec.image.width) == (32, 32)
    assert spec.image.mean == (0.4, 0.5, 0.6)
    assert spec.image.std == (0.2, 0.3, 0.25)
    assert (spec.image.interpolation, spec.image.resize_mode) == ("bilinear", "squash")
    assert spec.image.fill_color == (0, 0, 0)
    assert (spec.text.sot_id, spec.text.eot_id, spec.text.pad_id) == (49406, 49407, 0)
    assert spec.text.buckets == (16, 32, 77)
    assert spec.scoring.logit_scale == pytest.approx(float(checkpoint.state_dict["logit_scale"].exp()))
    assert spec.scoring.kind == "softmax"


def test_a_logit_bias_means_sigmoid(checkpoint: Checkpoint) -> None:
    spec = build_spec(checkpoint, {**checkpoint.state_dict, "logit_bias": torch.tensor(-10.0)})
    assert spec.scoring == ScoringSpec("sigmoid", spec.scoring.logit_scale, -10.0)


def test_json_round_trip(checkpoint: Checkpoint) -> None:
    spec = build_spec(checkpoint, checkpoint.state_dict).with_fingerprint("abc")
    assert ServingSpec.from_dict(json.loads(spec.to_json())) == spec


def test_what_few_checkpoints_need_changes_no_fingerprint_of_the_others(checkpoint: Checkpoint) -> None:
    """Fingerprints of stored embeddings are hashes of this text."""
    spec = build_spec(checkpoint, checkpoint.state_dict)
    usual = {"height", "width", "mean", "std", "interpolation", "resize_mode", "fill_color"}
    assert set(json.loads(spec.to_json())["image"]) == usual
    other = replace(spec, image=replace(spec.image, crop_offset="floor", to_rgb="white"))
    assert set(json.loads(other.to_json())["image"]) == usual | {"crop_offset", "to_rgb"}
    assert ServingSpec.from_dict(json.loads(other.to_json())) == other


@pytest.mark.parametrize("changes", [{"resize_mode": "naflex"}, {"patch_size": 16}, {"crop_offset": "up"}])
def test_settings_that_contradict_each_other_are_refused(checkpoint: Checkpoint, changes: dict[str, object]) -> None:
    image = build_spec(checkpoint, checkpoint.state_dict).image
    with pytest.raises(SpecError, match=next(iter(changes)).replace("resize_mode", "patch_size")):
        replace(image, **changes)


@pytest.mark.parametrize(
    ("part", "changes", "words"),
    [
        ("image", {"mean": ("x", 0.5, 0.5)}, "mean is x, 0.5, 0.5; allowed: finite numbers$"),
        ("image", {"std": (0.5, 0.0, 0.5)}, "std is 0.5, 0.0, 0.5; allowed: finite numbers above 0"),
        ("image", {"fill_color": (0, 0, 300)}, r"fill_color is \(0, 0, 300\); allowed: whole numbers from 0 to 255"),
        ("image", {"fill_color": ("red",) * 3}, "fill_color is"),
        ("scoring", {"logit_scale": math.inf}, "logit_scale is inf; allowed: finite numbers above 0"),
        ("scoring", {"logit_bias": math.nan}, "logit_bias is nan"),
    ],
)
def test_numbers_that_nothing_can_be_computed_with(
    checkpoint: Checkpoint, part: str, changes: dict[str, object], words: str
) -> None:
    with pytest.raises(SpecError, match=words):
        replace(getattr(build_spec(checkpoint, checkpoint.state_dict), part), **changes)


def test_an_incomplete_or_unknown_record_is_refused(checkpoint: Checkpoint) -> None:
    values = asdict(build_spec(checkpoint, checkpoint.state_dict))
    with pytest.raises(SpecError, match="image"):
        ServingSpec.from_dict({key: value for key, value in values.items() if key != "image"})
    with pytest.raises(SpecError, match="colour"):
        ServingSpec.from_dict({**values, "colour": 1})


def test_an_unknown_resize_mode_names_the_allowed_ones(checkpoint: Checkpoint) -> None:
    image = build_spec(checkpoint, checkpoint.state_dict).image
    with pytest.raises(SpecError, match="'stretch'; allowed: shortest, longest, squash"):
        replace(image, resize_mode="stretch")


@pytest.mark.parametrize(
    ("context", "any_length", "buckets"),
    [(77, True, (16, 32, 77)), (64, False, (64,)), (32, True, (16, 32)), (16, True, (16,)), (248, True, (16, 32, 248))],
)
def test_buckets(context: int, any_length: bool, buckets: tuple[int, ...]) -> None:
    assert text_buckets(context, any_length=any_length) == buckets


def test_another_vocabulary_is_refused() -> None:
    checkpoint = Checkpoint("x", "x", MODEL_CFG, PREPROCESS_CFG, {}, ClipBpe(77))
    with pytest.raises(CheckpointError, match="1000 tokens"):
        build_spec(checkpoint, {"logit_scale": torch.tensor(1.0), "token_embedding.weight": torch.zeros(1000, 8)})


def test_preprocessing_of_another_size_than_the_tower_is_refused() -> None:
    checkpoint = Checkpoint("x", "x", MODEL_CFG, {**PREPROCESS_CFG, "size": 64}, {}, ClipBpe(77))
    with pytest.raises(CheckpointError, match="64 x 64.*32 x 32"):
        build_spec(checkpoint, tiny_state_dict())


def test_weights_without_a_scale_are_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(CheckpointError, match="no logit_scale"):
        build_spec(checkpoint, {name: value for name, value in tiny_state_dict().items() if name != "logit_scale"})


def test_a_tokenizer_that_ends_elsewhere_than_the_tower_pools_is_refused(checkpoint: Checkpoint) -> None:
    text = {**checkpoint.model_cfg["text_cfg"], "pool_type": "eos", "eos_id": 5}
    other = replace(checkpoint, model_cfg={**checkpoint.model_cfg, "text_cfg": text})
    with pytest.raises(CheckpointError, match="pools at the id 49406, the tokenizer ends a text with 49407"):
        build_spec(other, checkpoint.state_dict)


def test_a_class_token_that_attends_to_the_padding_is_refused(checkpoint: Checkpoint) -> None:
    for pad_id, embed_cls in ((0, True), (7, False)):
        text = {**checkpoint.model_cfg["text_cfg"], "embed_cls": embed_cls, "pad_id": pad_id}
        other = replace(checkpoint, model_cfg={**checkpoint.model_cfg, "text_cfg": text})
        assert build_spec(other, checkpoint.state_dict).text.pad_id == 0
    text = {**text, "embed_cls": True}
    other = replace(checkpoint, model_cfg={**checkpoint.model_cfg, "text_cfg": text})
    with pytest.raises(CheckpointError, match="masks the id 7, the tokenizer pads with 0"):
        build_spec(other, checkpoint.state_dict)


def test_a_tokenizer_that_pads_with_what_the_tower_reads_is_refused(tmp_path: Path) -> None:
    chinese_clip(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["pad_token_id"] = 7
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = load_checkpoint(str(tmp_path))
    with pytest.raises(CheckpointError, match="masks the id 7, the tokenizer pads with 0"):
        build_spec(checkpoint, checkpoint.state_dict)
