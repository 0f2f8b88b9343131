"""The bundled demo: its files load as they stand, its figures hold on fresh images, its training runs."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

sys.path.append(str(Path(__file__).resolve().parents[2] / "export"))

from demo import evaluate, gallery, train, training
from demo.captions import ALL_PAIRS, HELD_OUT_PAIRS, LABELS, SEEN_PAIRS, TRAINED_PAIRS, label
from demo.drawing import DOMAINS
from demo.model import encode_text, new_model, only_tokens, token_ids
from tritonclip_export.frameworks import torch

ROOT = Path(__file__).resolve().parents[2]
MAX_WEIGHT_BYTES = 10_000_000
FRESH_SEED, FRESH_COUNT = 424242, 200
SETS = [(split, domain) for domain in DOMAINS for split in ("seen", "held-out")]
TINY = replace(train.BASE, steps=12, batch=16)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def figures(demo_folder) -> dict:
    return json.loads((demo_folder / "figures.json").read_text())


@pytest.fixture(scope="module")
def demo_folder() -> Path:
    return ROOT / "export" / "demo"


@pytest.fixture(scope="module")
def base_encoders():
    return evaluate.torch_encoders(*evaluate.load_checkpoint())


@pytest.fixture(scope="module")
def adapted_encoders():
    model, transform = evaluate.load_checkpoint()
    return evaluate.torch_encoders(evaluate.with_adapter(model), transform)


def tensor_names(file: Path) -> set[str]:
    with safe_open(file, framework="pt") as opened:
        return set(opened.keys())


def test_checkpoint_holds_exactly_the_models_tensors(demo_folder):
    model, _ = evaluate.load_checkpoint()
    assert tensor_names(demo_folder / "checkpoint" / "open_clip_model.safetensors") == set(model.state_dict())
    assert model.logit_scale.exp() > 10


def test_weights_stay_small_enough_to_check_in(demo_folder):
    files = [*demo_folder.glob("checkpoint/*"), *demo_folder.glob("adapter/*")]
    assert sum(file.stat().st_size for file in files) <= MAX_WEIGHT_BYTES


def test_adapter_reaches_both_towers_and_names_no_path(demo_folder):
    names = tensor_names(demo_folder / "adapter" / "adapter_model.safetensors")
    for tower in ("visual.transformer", "transformer"):
        for module in ("attn", "attn.base_layer.out_proj", "mlp.c_fc", "mlp.c_proj"):
            assert f"base_model.model.{tower}.resblocks.0.{module}.lora_B.weight" in names
    assert (
        json.loads((demo_folder / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
        == train.BASE_NAME
    )
    assert {file.name for file in (demo_folder / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_figures_reach_what_was_asked_for(figures):
    base, adapted = figures["accuracy"]["base"], figures["accuracy"]["with_adapter"]
    assert base["original"]["seen"] >= 0.98
    assert base["original"]["held-out"] >= 0.80
    for split in ("seen", "held-out"):
        assert base["shifted"][split] < 0.40
        assert adapted["shifted"][split] > 0.95
        assert adapted["original"][split] >= base["original"][split] - 0.02


def test_adapter_is_better_whole_than_either_towers_half(figures):
    by_tower = figures["shifted_accuracy_by_adapted_tower"]
    assert by_tower["both towers"] > max(by_tower["image tower"], by_tower["text tower"])


@pytest.mark.parametrize(("split", "domain"), SETS)
@pytest.mark.parametrize("state", ["base", "with_adapter"])
def test_fresh_images_reproduce_the_figure(split, domain, state, figures, base_encoders, adapted_encoders):
    encoders = {"base": base_encoders, "with_adapter": adapted_encoders}[state]
    claimed = figures["accuracy"][state][domain][split]
    measured = evaluate.accuracy(*encoders, list(evaluate.samples(split, domain, FRESH_SEED, FRESH_COUNT)))
    spread = max(claimed * (1 - claimed), 0.01) * (1 / FRESH_COUNT + 1 / figures["evaluation"]["images_per_figure"])
    assert abs(measured - claimed) <= 3.5 * math.sqrt(spread)


def test_gallery_is_answered_by_the_adapted_model_and_not_by_the_base(demo_folder, base_encoders, adapted_encoders):
    told = json.loads((demo_folder / "images" / "images.json").read_text())
    opened = [Image.open(demo_folder / "images" / file).convert("RGB") for file in told]
    wanted = [entry["label"] for entry in told.values()]
    assert [LABELS[index] for index in evaluate.predictions(*adapted_encoders, opened)] == wanted
    before = [LABELS[index] for index in evaluate.predictions(*base_encoders, opened)]
    right = dict.fromkeys(DOMAINS, 0)
    for entry, answer in zip(told.values(), before, strict=True):
        right[entry["domain"]] += entry["label"] == answer
    assert right["original"] == 4
    assert right["shifted"] < 4


def test_gallery_shows_held_out_pairs_and_images_that_are_not_square(demo_folder):
    held_out = {label(*pair) for pair in HELD_OUT_PAIRS}
    told = json.loads((demo_folder / "images" / "images.json").read_text())
    assert sum(e["label"] in held_out for e in told.values() if e["domain"] == "original") == 2
    assert sum(exhibit.size[0] != exhibit.size[1] for exhibit in gallery.EXHIBITS) >= 4


def test_labels_file_is_what_is_scored(demo_folder):
    assert (demo_folder / "labels.txt").read_text().splitlines() == list(LABELS)
    assert len(set(LABELS)) == len(ALL_PAIRS) == len(SEEN_PAIRS) + len(HELD_OUT_PAIRS) == 100


def test_training_never_meets_a_held_out_pair():
    batch = training.draw_batch(replace(TINY, batch=400, shifted_share=0.5), np.random.default_rng(0))
    met = {(one.shape, one.color) for one in [*batch.scenes, *batch.captions]}
    assert not met & set(HELD_OUT_PAIRS)
    assert not set(TRAINED_PAIRS) & set(HELD_OUT_PAIRS)


def test_samples_depend_on_the_seed_alone():
    first, again = (list(evaluate.samples("all", "shifted", 5, 6)) for _ in range(2))
    other = list(evaluate.samples("all", "shifted", 6, 6))
    pixels = [[evaluate.png_bytes(image) for image, _ in drawn] for drawn in (first, again, other)]
    assert pixels[0] == pixels[1]
    assert not set(pixels[0]) & set(pixels[2])


def test_shortened_text_forward_equals_open_clips():
    model, _ = evaluate.load_checkpoint()
    ids = token_ids(LABELS[:8])
    padded = torch.nn.functional.pad(ids, (0, model.context_length - ids.shape[1]))
    with torch.no_grad():
        assert ids.shape[1] < 10
        assert (encode_text(model, ids) - model.encode_text(padded, normalize=True)).abs().max() < 1e-5


def test_token_that_is_not_trained_is_refused():
    model = new_model()
    ids = token_ids(["a red circle"])
    with only_tokens(model, torch.unique(ids)), pytest.raises(ValueError, match="only_tokens"):
        encode_text(model, token_ids(["a violet circle"]))
    assert model.token_embedding.weight.shape == (49408, 64)


def test_training_reduces_the_loss(tmp_path):
    losses = train.base_stage(tmp_path, TINY, 4, lambda _: None)
    assert np.mean(losses[-3:]) < np.mean(losses[:3])


def test_command_writes_every_file(tmp_path, capsys):
    out = tmp_path / "demo"
    assert train.main(["--out", str(out), "--base-steps", "1", "--adapter-steps", "1", "--images", "4"]) == 0
    assert "step 1 of 1" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {
        "checkpoint",
        "adapter",
        "images",
        "labels.txt",
        "figures.json",
    }
    model, transform = evaluate.load_checkpoint(out / "checkpoint")
    encoders = evaluate.torch_encoders(evaluate.with_adapter(model, out / "adapter"), transform)
    assert len(evaluate.predictions(*encoders, [Image.new("RGB", (9, 5))])) == 1


def test_same_seed_trains_the_same_weights():
    first, again = (train.train_base(replace(TINY, steps=2), lambda _: None)[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_failed_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "figures.json"
    target.write_text("old")

    def fail(path: Path) -> None:
        path.write_text("ha")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        train.publish(target, fail)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
