"""`--preprocess dali`: what it adds to an export, what it leaves as it is, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from naflex_checkpoint import hf_siglip2
from tiny_clip import write_tiny_checkpoint
from tritonclip_client.main import main
from tritonclip_export.commands import export as command
from tritonclip_export.configs import read_config, templates
from tritonclip_export.dali import CONFIG, DALI_ONLY, PREPROCESSES, cpu_files, dali_files, record, recorded
from tritonclip_export.errors import RepositoryError, SpecError
from tritonclip_export.manifest import read_manifest, verify
from tritonclip_export.repository import write_files
from tritonclip_export.spec import ImageSpec
from tritonclip_serve.engines import check_dali
from tritonclip_serve.errors import RepositoryError as NotServedError
from tritonclip_serve.installation import Installation, find_server

LIMITS = ("--max-image-batch", "6", "--preprocess-instances", "3")
IMAGE = ImageSpec(32, 32, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), "bilinear", "squash", (1, 2, 3))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One checkpoint, exported with either."""
    folder = tmp_path_factory.mktemp("dali")
    source = write_tiny_checkpoint(folder / "tiny")
    for preprocess in PREPROCESSES:
        assert main(["export", str(source), str(folder / preprocess), *LIMITS, "--preprocess", preprocess]) == 0
    return {preprocess: folder / preprocess for preprocess in PREPROCESSES}


def files(repository: Path) -> dict[str, bytes]:
    found = (path for path in repository.rglob("*") if path.is_file())
    return {path.relative_to(repository).as_posix(): path.read_bytes() for path in found}


def picture_config(**changes: object) -> dict:
    image = ImageSpec(**{**vars(IMAGE), **changes})
    made = dali_files(image, (templates() / CONFIG).read_text(encoding="utf-8"))
    return json.loads(made["preprocess_dali/1/pictures.json"])


def test_an_export_for_the_cpu_has_nothing_of_dali(exported: dict[str, Path]) -> None:
    written = files(exported["cpu"])
    assert not [path for path in written if "dali" in path]
    assert "preprocess" not in read_manifest(exported["cpu"])
    assert read_config(exported["cpu"] / CONFIG).default_model_filename == ""


def test_dali_changes_one_config_and_adds_its_files(exported: dict[str, Path]) -> None:
    cpu, dali = (files(exported[preprocess]) for preprocess in PREPROCESSES)
    assert set(dali) - set(cpu) == set(DALI_ONLY)
    assert {path for path in cpu if cpu[path] != dali[path]} == {CONFIG, "manifest.json"}
    manifest = verify(exported["dali"])
    assert recorded(manifest) == "dali"
    assert manifest["spec"] == verify(exported["cpu"])["spec"]


def test_the_decoder_has_the_numbers_of_the_export(exported: dict[str, Path]) -> None:
    decoder = read_config(exported["dali"] / "preprocess_dali" / "config.pbtxt")
    assert (decoder.name, decoder.backend, decoder.max_batch_size) == ("preprocess_dali", "dali", 6)
    assert list(decoder.output[0].dims) == [32, 32, 3]
    assert decoder.input[0].allow_ragged_batch
    assert decoder.parameters["num_threads"].string_value == "3"
    pictures = json.loads((exported["dali"] / "preprocess_dali" / "1" / "pictures.json").read_text())
    assert pictures == {
        "size": [32, 32],
        "interpolation": "bilinear",
        "fill_color": [0, 0, 0],
        "batch_size": 6,
        "threads": 3,
    }
    router = read_config(exported["dali"] / CONFIG)
    assert router.default_model_filename == "dali_router.py"
    assert (router.max_batch_size, router.instance_group[0].count) == (6, 3)


def test_the_way_back_leaves_what_an_export_for_the_cpu_writes(exported: dict[str, Path], tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(exported["dali"], repository)
    write_files(repository, cpu_files((repository / CONFIG).read_text()))
    for path in DALI_ONLY:
        (repository / path).unlink()
    there, back = files(exported["cpu"]), files(repository)
    assert {**there, "manifest.json": b""} == {**back, "manifest.json": b""}
    write_files(repository, dali_files(IMAGE, (repository / CONFIG).read_text()))
    assert files(repository)[CONFIG] == files(exported["dali"])[CONFIG]


def test_the_manifest_is_told_and_untold() -> None:
    manifest = {"format": 1, "spec": {}}
    assert recorded(manifest) == "cpu"
    assert record(record(manifest, "dali"), "cpu") == record(manifest, "cpu") == manifest
    assert recorded(record(manifest, "dali")) == "dali"


def test_open_clips_own_filter_for_what_is_not_square() -> None:
    assert picture_config(resize_mode="shortest")["interpolation"] == "bilinear"
    assert picture_config(resize_mode="shortest", width=48)["interpolation"] == "bicubic"
    assert picture_config(resize_mode="squash", width=48)["interpolation"] == "bilinear"
    assert picture_config(width=48)["size"] == [32, 48]


def test_the_checked_in_files_are_those_of_the_default_model() -> None:
    image = ImageSpec(224, 224, (0.0,) * 3, (1.0,) * 3, "bicubic", "shortest", (0, 0, 0))
    made = dali_files(image, (templates() / CONFIG).read_text(encoding="utf-8"))
    there = json.loads((templates() / "preprocess_dali" / "1" / "pictures.json").read_text())
    assert json.loads(made["preprocess_dali/1/pictures.json"]) == there
    assert set(made) == {CONFIG, *DALI_ONLY}
    assert all((templates() / path).is_file() for path in DALI_ONLY)


def test_naflex_is_refused_before_anything_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hf_siglip2(tmp_path / "checkpoint", max_num_patches=60, num_patches=36)
    before = sorted(tmp_path.iterdir())
    assert main(["export", str(tmp_path / "checkpoint"), str(tmp_path / "out"), "--preprocess", "dali"]) == 2
    assert "--preprocess dali with a NaFlex tower" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before
    image = ImageSpec(**{**vars(IMAGE), "resize_mode": "naflex", "patch_size": 2, "max_num_patches": 60})
    with pytest.raises(SpecError, match="pictures of one size; give --preprocess cpu"):
        dali_files(image, "")


def test_a_config_that_is_none_is_named() -> None:
    for make in (lambda text: dali_files(IMAGE, text), cpu_files):
        with pytest.raises(RepositoryError, match=f"{CONFIG} is no Triton model configuration"):
            make("no config")


def test_a_server_without_dali_refuses(exported: dict[str, Path], tmp_path: Path, capsys) -> None:
    embedded = find_server("embedded", tmp_path)
    check_dali(exported["cpu"], embedded)
    check_dali(exported["dali"], Installation(Path("tritonserver"), "the tritonserver"))
    with pytest.raises(NotServedError, match="the embedded tritonserver .* has no DALI backend; serve it in NVIDIA's"):
        check_dali(exported["dali"], embedded)
    assert main(["serve", str(exported["dali"]), "--server", "embedded"]) == 2
    assert "are decoded by DALI" in capsys.readouterr().err


def test_the_command_knows_what_the_export_knows() -> None:
    assert command.PREPROCESSES == PREPROCESSES
