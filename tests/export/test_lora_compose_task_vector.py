"""A fully fine-tuned checkpoint minus its base, as an adapter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import save_file

from lora_models import MODEL_CFG, largest_difference, open_clip_embeddings, quiet, random_state_dict, train_adapter
from tiny_clip import PREPROCESS_CFG
from tritonclip_export.adapters.lora import merge_adapters, read_adapter
from tritonclip_export.adapters.lora.compose import Composition
from tritonclip_export.adapters.lora.task_vector import is_checkpoint, read_task_vector
from tritonclip_export.checkpoints.hugging_face.clip import build_hf_clip
from tritonclip_export.errors import AdapterError, CheckpointError
from tritonclip_export.frameworks import torch
from tritonclip_export.parity.reference import ReferenceUnavailable, unmerged_reference

BASE = random_state_dict(0)
# Another training of the same architecture: every tensor differs.
TUNED = {name: tensor + 0.05 * torch.randn_like(tensor) for name, tensor in random_state_dict(0).items()}
Tensors = dict[str, torch.Tensor]


def write_open_clip(folder: Path, tensors: Tensors) -> Path:
    folder.mkdir()
    config = {"model_cfg": MODEL_CFG, "preprocess_cfg": {**PREPROCESS_CFG, "size": 16}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "open_clip_model.safetensors")
    return folder


def write_hf(folder: Path, tensors: Tensors) -> Path:
    with quiet():
        build_hf_clip(MODEL_CFG, tensors).save_pretrained(folder)
    geometry = {"size": {"height": 16, "width": 16}, "do_center_crop": False}
    values = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3}
    processor = {"image_processor_type": "CLIPImageProcessor", **geometry, **values}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


WRITERS = {"open_clip": write_open_clip, "hf": write_hf}


@pytest.mark.parametrize("kind", WRITERS)
def test_whole_difference_is_the_tuned_model(kind: str, tmp_path: Path) -> None:
    vector = read_task_vector(WRITERS[kind](tmp_path / "tuned", TUNED))
    result = merge_adapters(BASE, [(vector, 1.0)])
    assert largest_difference(open_clip_embeddings(result.state_dict), open_clip_embeddings(TUNED)) <= 2e-6
    assert largest_difference(open_clip_embeddings(BASE), open_clip_embeddings(TUNED)) > 1e-2
    (report,) = result.report.adapters
    assert (report.name, report.method, report.format) == ("tuned", "task vector", "checkpoint")
    assert report.folded == len(BASE) - 1
    assert {file.name for file in vector.files} >= {"config.json" if kind == "hf" else "open_clip_config.json"}
    assert any(file.suffix == ".safetensors" for file in vector.files)


@pytest.mark.parametrize("weight", [0.4, -1.0])
def test_weight_is_the_scale(weight: float, tmp_path: Path) -> None:
    vector = read_task_vector(write_open_clip(tmp_path / "tuned", TUNED))
    result = merge_adapters(BASE, [(vector, weight)]).state_dict
    for name, base in BASE.items():
        wanted = base if name == "logit_scale" else base + weight * (TUNED[name] - base)
        assert torch.allclose(result[name], wanted, atol=1e-6), name


def test_scoring_stays_the_bases_and_that_is_said(tmp_path: Path) -> None:
    tuned = {**TUNED, "logit_scale": torch.tensor(4.5)}
    result = merge_adapters(BASE, [(read_task_vector(write_open_clip(tmp_path / "tuned", tuned)), 1.0)])
    assert torch.equal(result.state_dict["logit_scale"], BASE["logit_scale"])
    assert "logit_scale is 4.5 there" in result.report.warnings[0]
    same = {**TUNED, "logit_scale": BASE["logit_scale"]}
    assert (
        merge_adapters(BASE, [(read_task_vector(write_open_clip(tmp_path / "same", same)), 1.0)]).report.warnings == ()
    )


def test_beside_a_lora_and_by_ties(tmp_path: Path) -> None:
    vector = read_task_vector(write_open_clip(tmp_path / "tuned", TUNED))
    lora = read_adapter(train_adapter(tmp_path / "lora", "hf", BASE, target_modules=["fc1"]).path)
    summed = merge_adapters(BASE, [(vector, 0.5), (lora, 2.0)]).state_dict
    alone = merge_adapters(BASE, [(lora, 1.0)]).state_dict
    for name, base in BASE.items():
        tuned = base if name == "logit_scale" else TUNED[name]
        assert torch.allclose(summed[name], base + 0.5 * (tuned - base) + 2.0 * (alone[name] - base), atol=1e-5), name
    elected = merge_adapters(BASE, [(vector, 0.5), (lora, 2.0)], how=Composition("ties", 0.2)).state_dict
    kept = (elected["visual.proj"] != BASE["visual.proj"]).float().mean().item()
    assert kept == pytest.approx(0.2, abs=0.01)


def test_low_precision_checkpoint_is_subtracted_in_float32(tmp_path: Path) -> None:
    half = {name: tensor.half() for name, tensor in TUNED.items()}
    vector = read_task_vector(write_open_clip(tmp_path / "tuned", half))
    result = merge_adapters(BASE, [(vector, 1.0)]).state_dict
    assert all(torch.allclose(result[n], half[n].float(), atol=1e-6) for n in BASE if n != "logit_scale")


def test_names_of_a_custom_text_tower_are_the_same_tensors(tmp_path: Path) -> None:
    text = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")
    custom = {f"text.{name}" if name.startswith(text) else name: tensor for name, tensor in BASE.items()}
    vector = read_task_vector(write_open_clip(tmp_path / "tuned", TUNED))
    result = merge_adapters(custom, [(vector, 1.0)]).state_dict
    assert list(result) == list(custom)
    assert torch.allclose(result["text.ln_final.weight"], TUNED["ln_final.weight"], atol=1e-6)


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ({name: tensor for name, tensor in BASE.items() if name != "visual.proj"}, "unknown visual.proj"),
        ({**BASE, "visual.extra": torch.ones(2)}, "missing visual.extra"),
        ({**BASE, "visual.proj": torch.ones(64, 8)}, r"visual.proj is \(64, 32\), not \(64, 8\) \(1 in all\)"),
    ],
)
def test_another_architecture(base: Tensors, words: str, tmp_path: Path) -> None:
    vector = read_task_vector(write_open_clip(tmp_path / "tuned", TUNED))
    with pytest.raises(AdapterError, match=f"is not a fine-tuning of this checkpoint: .*{words}"):
        merge_adapters(base, [(vector, 1.0)])


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    bad = {**TUNED, "visual.proj": TUNED["visual.proj"] * torch.inf}
    with pytest.raises((AdapterError, CheckpointError), match="NaN or infinity"):
        merge_adapters(BASE, [(read_task_vector(write_open_clip(tmp_path / "tuned", bad)), 1.0)])


def test_it_has_no_unmerged_forward(tmp_path: Path) -> None:
    vector = read_task_vector(write_open_clip(tmp_path / "tuned", TUNED))
    with pytest.raises(ReferenceUnavailable, match="no adapter to run"):
        unmerged_reference(MODEL_CFG, BASE, [(vector, 1.0)])


def test_checkpoints_are_told_from_adapters(tmp_path: Path) -> None:
    assert is_checkpoint(write_open_clip(tmp_path / "native", TUNED))
    assert is_checkpoint(write_hf(tmp_path / "hf", TUNED))
    adapter = train_adapter(tmp_path / "lora", "hf", BASE, target_modules=["fc1"]).path
    assert not is_checkpoint(adapter)
    (adapter / "config.json").write_text("{}")
    assert not is_checkpoint(adapter)
    assert not is_checkpoint(tmp_path / "nothing")
