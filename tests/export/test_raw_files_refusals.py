"""Weights in a file that are refused: those of another model, archives that are damaged or want to run code."""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile
from pathlib import Path

import pytest

from tritonclip_export.checkpoints.weights import read_weights
from tritonclip_export.errors import CheckpointError
from tritonclip_export.frameworks import torch
from tritonclip_export.pipeline import ExportRequest, export


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A TorchScript archive of no CLIP."""
    path = tmp_path / "program.pt"
    with warnings.catch_warnings():
        # torch deprecates making what people still have.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(str(path))
    return path


def replaced(archive: Path, ending: str, content: bytes | None) -> Path:
    """A copy of the archive whose file of that ending has other content, or is not there."""
    copy = archive.with_name("changed.pt")
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(copy, "w") as new:
        for name in old.namelist():
            if not name.endswith(ending):
                new.writestr(name, old.read(name))
            elif content is not None:
                new.writestr(name, content)
    return copy


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return (os.system, ("echo code ran",))


def test_a_program_with_code_in_its_pickle_is_refused(program: Path, capfd: pytest.CaptureFixture[str]) -> None:
    evil = replaced(program, "/data.pkl", pickle.dumps(Evil(), protocol=2))
    with pytest.raises(CheckpointError, match="would run code"):
        read_weights(evil)
    assert "code ran" not in capfd.readouterr().out


@pytest.mark.parametrize("content", [None, b"", b"\0" * 4])
def test_a_program_without_all_of_its_weights_is_refused(program: Path, content: bytes | None) -> None:
    with pytest.raises(CheckpointError, match="copy or download it again"):
        read_weights(replaced(program, "/data/0", content))


def test_a_program_that_grows_when_it_is_read_is_refused(program: Path) -> None:
    packed = program.with_name("packed.pt")
    with zipfile.ZipFile(program) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(CheckpointError, match="is compressed, which torch never does"):
        read_weights(packed)


def test_a_module_in_two_places_is_refused(program: Path) -> None:
    """Each within the next twice, thirty of them in a kilobyte have a thousand million names."""
    module = b"c__torch__\nM\n)\x81"
    nested = b"\x80\x02" + module + b"}b" + (b"q\x010" + module + b"}(X\x01\0\0\0ah\x01X\x01\0\0\0bh\x01ub") * 30 + b"."
    with pytest.raises(CheckpointError, match="has another place too"):
        read_weights(replaced(program, "/data.pkl", nested))


def test_storage_of_a_program_is_read_once(program: Path) -> None:
    """However many tensors are views of it."""
    tied = torch.nn.Linear(2, 2, bias=False)
    tied.register_buffer("view", tied.weight.detach()[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(tied, torch.zeros(1, 2)).save(str(program))
    read = read_weights(program)
    assert torch.equal(read["view"], read["weight"][0])
    assert read["view"].untyped_storage().data_ptr() == read["weight"].untyped_storage().data_ptr()


# The first weight of a file that no library reads under an architecture of open_clip, and whose the message calls it.
# PE's own names are those of a plain ViT.
OTHER_NAMES = {
    "visual.blocks.0.attn.q_proj.weight": "EVA-CLIP's own repository",
    "visual.transformer.resblocks.0.attn.in_proj_weight": "open_clip with a plain ViT",
    "vision_model.encoder.layers.0.self_attn.q_proj.weight": "Hugging Face's CLIPModel",
}


@pytest.mark.parametrize(("name", "whose"), OTHER_NAMES.items())
def test_weights_by_names_of_another_library_are_refused(name: str, whose: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({name: torch.zeros(2, 2)}, path)
    with pytest.raises(
        CheckpointError, match=rf"do not fit EVA02-B-16: .*1 unknown \({name}\).*like those of {whose};"
    ):
        export(ExportRequest("EVA02-B-16", tmp_path / "out", weights=path, like="merged2b_s8b_b131k"))
    assert not (tmp_path / "out").exists()


def test_half_a_mobileclip_by_apple_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mobileclip_s1.pt"
    torch.save({"image_encoder.model.patch_embed.0.rbr_conv.0.conv.weight": torch.zeros(64, 3, 3, 3)}, path)
    with pytest.raises(CheckpointError, match=r"names of Apple's MobileCLIP, .*'logit_scale'"):
        export(ExportRequest("MobileCLIP-S1", tmp_path / "out", weights=path, like="datacompdr"))
    with pytest.raises(CheckpointError, match=r"do not fit ViT-B-32"):
        export(ExportRequest("ViT-B-32", tmp_path / "out", weights=path, like="openai"))
    assert not (tmp_path / "out").exists()


def test_a_program_of_another_model_is_refused(program: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"do not fit ViT-B-32: .*2 unknown \(weight, bias\)"):
        export(ExportRequest("ViT-B-32", tmp_path / "out", weights=program, like="openai"))
    assert not (tmp_path / "out").exists()
