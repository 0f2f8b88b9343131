"""Exports that are easy to get wrong: weights in 16 bits, odd places for the output, what the manifest says of them."""

from __future__ import annotations

import hashlib
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from tiny_clip import MODEL_CFG, tiny_state_dict, write_tiny_checkpoint
from tritonclip_export.checkpoints.model import new_model
from tritonclip_export.frameworks import torch
from tritonclip_export.pipeline import ExportRequest, export
from tritonclip_export.repository import write as repository
from tritonclip_export.repository.manifest import verify
from tritonclip_export.towers import onnx_export


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tiny_checkpoint(tmp_path / "tiny")


def _small_adapter(folder: Path) -> Path:
    """Deltas so small that rounding the merged weights to bfloat16 loses much of them."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(new_model(MODEL_CFG), LoraConfig(r=4, lora_alpha=8, target_modules=["attn", "c_fc"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    model.save_pretrained(str(folder))
    return folder


def test_a_checkpoint_in_16_bits_keeps_all_of_a_small_adapter(source: Path, tmp_path: Path) -> None:
    weights = source / "open_clip_model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(weights).items()}, weights)
    adapter = _small_adapter(tmp_path / "adapter")
    report = export(ExportRequest(str(source), tmp_path / "out", adapters=[(adapter, 1.0)]))["parity"]
    assert min(comparison["cosine_min"] for comparison in report["comparisons"]) > 0.999999
    assert "PEFT" in report["reference"]


def test_the_manifest_hashes_what_was_read_of_an_adapter_and_no_more(source: Path, tmp_path: Path) -> None:
    adapter = _small_adapter(tmp_path / "adapter")
    (adapter / "optimizer.pt").write_bytes(b"as large as the model")
    files = export(ExportRequest(str(source), tmp_path / "out", adapters=[(adapter, 1.0)]))["adapters"][0]["files"]
    assert sorted(files) == ["adapter_config.json", "adapter_model.safetensors"]
    assert all(files[name] == hashlib.sha256((adapter / name).read_bytes()).hexdigest() for name in files)


def test_a_name_changes_no_fingerprint(source: Path, tmp_path: Path) -> None:
    specs = [export(ExportRequest(str(source), tmp_path / name, name=name))["spec"] for name in ("one", "two")]
    assert specs[0]["name"] != specs[1]["name"]
    assert specs[0]["fingerprint"] == specs[1]["fingerprint"]


def test_the_folder_where_one_stands_can_be_the_output(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    written = export(ExportRequest(f"{source}/", Path()))
    assert written["spec"]["name"] == "tiny"
    assert verify(tmp_path / "here") == written


def test_a_link_stays_and_what_it_points_to_is_replaced(source: Path, tmp_path: Path) -> None:
    (tmp_path / "v1").mkdir()
    current = tmp_path / "current"
    current.symlink_to("v1")
    export(ExportRequest(str(source), current))
    export(ExportRequest(str(source), current, name="second", force=True))
    assert current.is_symlink()
    assert verify(tmp_path / "v1")["spec"]["name"] == "second"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["current", "tiny", "v1"]


def test_the_old_repository_comes_back_if_the_new_one_cannot_take_its_place(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    with pytest.raises(FileNotFoundError), repository.staged(out) as staging:
        shutil.rmtree(staging)
    assert (out / "old").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_weights_beside_the_graph_are_published_and_hashed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a tower that is too large for one protobuf file."""
    monkeypatch.setattr(onnx_export, "MAX_SINGLE_FILE_BYTES", 0)
    out = tmp_path / "out"
    assert "text_encoder/1/model.onnx.data" in export(ExportRequest(str(source), out))["files"]
    data = out / "text_encoder" / "1" / "model.onnx.data"
    assert data.stat().st_size > tiny_state_dict()["token_embedding.weight"].numel() * np.float32().itemsize
    verify(out)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_nothing_half_written(source: Path, tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "tritonclip_client.main", "export", str(source), str(tmp_path / "out")]
    # A shell starts what runs in its background deaf to interrupts, this test's parents perhaps among it.
    hearing = partial(signal.signal, number, signal.SIG_DFL)
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, preexec_fn=hearing) as process:
        while not (begun := list(tmp_path.glob(".out.partial-*"))) and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(number)
        # An interrupt that passed through an exec() (torch has some) ends Python by SIGINT; a shell shows 130 for both.
        assert process.wait(60) in (130, -signal.SIGINT)
    assert begun
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
