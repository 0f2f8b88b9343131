"""An adapter that lost half of its tensors, as a copy that was cut short leaves it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tritonclip_bench.demo import DEMO
from tritonclip_client.main import main
from tritonclip_export.adapters.lora.compose import Composition
from tritonclip_export.pipeline import ExportRequest, served_modules

CHECKPOINT, WHOLE = DEMO / "checkpoint", DEMO / "adapter"


@pytest.fixture
def half(tmp_path: Path) -> Path:
    folder = tmp_path / "half"
    shutil.copytree(WHOLE, folder)
    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({key: tensors[key] for key in sorted(tensors)[: len(tensors) // 2]}, weights)
    return folder


@pytest.mark.parametrize("more", [[], ["--adapter", str(WHOLE), "--merge-method", "ties", "--merge-density", "0.5"]])
def test_it_is_refused(more: list[str], half: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    total = len(load_file(WHOLE / "adapter_model.safetensors"))
    assert main(["export", str(CHECKPOINT), str(tmp_path / "out"), "--adapter", str(half), *more]) == 2
    assert f"{half} lacks {total // 2} of the {total} tensors" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_it_is_taken_if_that_is_meant(half: Path, tmp_path: Path) -> None:
    request = ExportRequest(str(CHECKPOINT), tmp_path / "out", adapters=[(half, 1.0)], allow_partial_adapter=True)
    gate = served_modules(request).gate
    assert gate.reference == "float32 PyTorch, PEFT on open_clip, 1 adapters unmerged"
    assert gate.caveat is None


def test_what_was_not_compared_is_said(tmp_path: Path) -> None:
    adapters = [(WHOLE, 1.0), (WHOLE, 0.5)]
    request = ExportRequest(str(CHECKPOINT), tmp_path / "out", adapters=adapters, composition=Composition("ties", 0.5))
    gate = served_modules(request).gate
    assert gate.reference == "float32 PyTorch, open_clip with the merged weights"
    assert gate.caveat == "PEFT has no unmerged forward for ties. The merge itself is possible."


def test_a_weight_that_is_no_number_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(CHECKPOINT), str(tmp_path / "out"), "--adapter", f"{WHOLE}=abc"]) == 2
    assert f"the weight 'abc' is not a number; write {WHOLE}=0.5" in capsys.readouterr().err
