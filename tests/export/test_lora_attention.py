"""nn.MultiheadAttention: PEFT adds out_proj twice, and layers inside it that are adapted alone never run."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_models import (
    largest_difference,
    open_clip_embeddings,
    peft_wrap,
    plain_model,
    quiet,
    random_state_dict,
    set_config,
    train_adapter,
)
from tritonclip_export.adapters.lora import merge_adapters, read_adapter, targets
from tritonclip_export.adapters.lora.targets import out_proj_repeats
from tritonclip_export.errors import AdapterError
from tritonclip_export.frameworks import torch

TOLERANCE = 2e-5
STATE_DICT = random_state_dict()


def test_adding_out_proj_once_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = train_adapter(tmp_path / "adapter", "open_clip", STATE_DICT, target_modules=["attn"])
    adapter = read_adapter(trained.path)
    twice = merge_adapters(STATE_DICT, [(adapter, 1.0)]).state_dict
    assert largest_difference(open_clip_embeddings(twice), trained.embeddings) <= TOLERANCE
    monkeypatch.setattr(targets, "OUT_PROJ_REPEATS", (((0, 15, 0), 1),))
    once = merge_adapters(STATE_DICT, [(adapter, 1.0)]).state_dict
    assert largest_difference(open_clip_embeddings(once), trained.embeddings) > 1e-2


def test_every_known_release_adds_out_proj_twice() -> None:
    for version in (None, "0.15.0", "0.15.2", "0.18.1", "0.19.1", "0.21.2", "0.18.0.dev0@abc"):
        assert out_proj_repeats(version) == 2


def test_a_release_that_adds_once_is_a_line_of_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "OUT_PROJ_REPEATS", (((0, 15, 0), 2), ((0, 99, 0), 1)))
    assert [out_proj_repeats(v) for v in (None, "0.21.2", "0.98.9", "0.99.0", "1.0.0")] == [2, 2, 2, 1, 1]


def test_attention_of_an_unmeasured_peft_is_refused(tmp_path: Path) -> None:
    trained = train_adapter(tmp_path / "adapter", "open_clip", STATE_DICT, target_modules=["attn"])
    set_config(trained.path, peft_version="9.0.0")
    words = r"trained with PEFT 9\.0\.0, .* up to 0\.21\.2, which adds .* twice.* set peft_version in .* to 0\.21\.2"
    with pytest.raises(AdapterError, match=words):
        merge_adapters(STATE_DICT, [(read_adapter(trained.path), 1.0)])


def test_other_layers_of_an_unmeasured_peft_are_merged(tmp_path: Path) -> None:
    trained = train_adapter(tmp_path / "adapter", "open_clip", STATE_DICT, target_modules=["c_fc"])
    set_config(trained.path, peft_version="9.0.0")
    merged = merge_adapters(STATE_DICT, [(read_adapter(trained.path), 1.0)]).state_dict
    assert largest_difference(open_clip_embeddings(merged), trained.embeddings) <= TOLERANCE


def test_dead_out_proj_changes_nothing_and_is_reported(tmp_path: Path) -> None:
    trained = train_adapter(tmp_path / "adapter", "open_clip", STATE_DICT, target_modules=["out_proj", "c_fc"])
    result = merge_adapters(STATE_DICT, [(read_adapter(trained.path), 1.0)])
    (report,) = result.report.adapters
    assert largest_difference(open_clip_embeddings(result.state_dict), trained.embeddings) <= TOLERANCE
    assert report.folded == 4
    assert sorted(skipped.key for skipped in report.skipped) == sorted(
        f"{tower}transformer.resblocks.{layer}.attn.out_proj" for tower in ("", "visual.") for layer in (0, 1)
    )
    assert "never calls" in report.skipped[0].reason
    assert "max |B|" in report.warnings[0]


def test_untrained_dead_out_proj_is_no_warning(tmp_path: Path) -> None:
    trained = train_adapter(
        tmp_path / "adapter", "open_clip", STATE_DICT, target_modules=["out_proj", "c_fc"], noise=0.0
    )
    (report,) = merge_adapters(STATE_DICT, [(read_adapter(trained.path), 1.0)]).report.adapters
    assert len(report.skipped) == 4
    assert report.warnings == ()


def test_pefts_own_merge_differs_where_layers_are_dead(tmp_path: Path) -> None:
    """Why the keys are skipped: PEFT's merge_and_unload is not its forward here."""
    model = plain_model("open_clip", STATE_DICT)
    wrapped = peft_wrap(model, target_modules=["out_proj"], init_lora_weights=False)
    with quiet():
        wrapped.save_pretrained(str(tmp_path / "adapter"))
        by_peft = wrapped.merge_and_unload().state_dict()
    ours = merge_adapters(STATE_DICT, [(read_adapter(tmp_path / "adapter"), 1.0)]).state_dict
    assert all(torch.equal(ours[name], STATE_DICT[name]) for name in STATE_DICT)
    changed = largest_difference(open_clip_embeddings(by_peft), open_clip_embeddings(STATE_DICT))
    assert changed > 1e-3
