"""`--preprocess dali`: what it adds to an export, what it leaves as it is, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from naflex_checkpoint import hf_siglip2
from tiny_clip import write_tiny_checkpoint
from tritonclip_client.main import main
from tritonclip_export.repository.configs import read_config
from tritonclip_export.repository.dali import dali_files
from tritonclip_export.repository.manifest import verify
from tritonclip_export.repository.templates import templates
from tritonclip_export.settings import PREPROCESSES, Settings
from tritonclip_export.spec import ImageSpec
from tritonclip_serve.fit import check_fit
from tritonclip_serve.installation import find_server

CONFIG = "preprocess/config.pbtxt"
ADDED = {
    *("preprocess/1/clip_dali.py", "preprocess/1/dali_router.py", "preprocess_dali/config.pbtxt"),
    *("preprocess_dali/1/dali.py", "preprocess_dali/1/images.json"),
}
LIMITS = ("--max-image-batch", "6", "--preprocess-threads", "3")
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


def image_config(**changes: object) -> dict:
    image = ImageSpec(**{**vars(IMAGE), **changes})
    return json.loads(dali_files(image, Settings())["preprocess_dali/1/images.json"])


def configure(repository: Path, *options: str) -> None:
    assert main(["configure", str(repository), *options]) == 0
    verify(repository)


def test_an_export_for_the_cpu_has_nothing_of_dali(exported: dict[str, Path]) -> None:
    written = files(exported["cpu"])
    assert not [path for path in written if "dali" in path]
    assert read_config(exported["cpu"] / CONFIG).default_model_filename == ""


def test_dali_changes_one_config_and_adds_its_files(exported: dict[str, Path]) -> None:
    cpu, dali = (files(exported[preprocess]) for preprocess in PREPROCESSES)
    assert set(dali) - set(cpu) == ADDED
    assert {path for path in cpu if cpu[path] != dali[path]} == {CONFIG, "manifest.json"}
    manifest = verify(exported["dali"])
    assert manifest["settings"]["preprocess"] == "dali"
    assert manifest["spec"] == verify(exported["cpu"])["spec"]


def test_the_decoder_has_the_numbers_of_the_export(exported: dict[str, Path]) -> None:
    decoder = read_config(exported["dali"] / "preprocess_dali" / "config.pbtxt")
    assert (decoder.name, decoder.backend, decoder.max_batch_size) == ("preprocess_dali", "dali", 6)
    assert list(decoder.output[0].dims) == [32, 32, 3]
    assert decoder.input[0].allow_ragged_batch
    assert decoder.parameters["num_threads"].string_value == "3"
    images = json.loads((exported["dali"] / "preprocess_dali" / "1" / "images.json").read_text())
    assert images == {
        "size": [32, 32],
        "interpolation": "bilinear",
        "fill_color": [0, 0, 0],
        "batch_size": 6,
        "threads": 3,
    }
    router = read_config(exported["dali"] / CONFIG)
    assert router.default_model_filename == "dali_router.py"
    assert (router.max_batch_size, router.instance_group[0].count) == (0, 1)
    assert (router.parameters["max_batch"].string_value, router.parameters["threads"].string_value) == ("6", "3")


def test_there_and_back_again_is_where_it_was(exported: dict[str, Path], tmp_path: Path) -> None:
    repository = shutil.copytree(exported["dali"], tmp_path / "repository")
    cpu, dali = (files(exported[preprocess]) for preprocess in PREPROCESSES)
    configure(repository, "--preprocess", "cpu")
    assert not (repository / "preprocess_dali").exists()
    assert {**files(repository), "manifest.json": b""} == {**cpu, "manifest.json": b""}
    configure(repository, "--preprocess", "dali")
    assert {**files(repository), "manifest.json": b""} == {**dali, "manifest.json": b""}


def test_the_decoder_follows_batch_and_processes(exported: dict[str, Path], tmp_path: Path) -> None:
    repository = shutil.copytree(exported["dali"], tmp_path / "repository")
    configure(repository, "--max-image-batch", "4", "--preprocess-threads", "5", "--queue-seconds", "3")
    images = json.loads((repository / "preprocess_dali" / "1" / "images.json").read_text())
    assert (images["batch_size"], images["threads"]) == (4, 5)
    decoder = read_config(repository / "preprocess_dali" / "config.pbtxt")
    assert (decoder.max_batch_size, decoder.parameters["num_threads"].string_value) == (4, "5")
    assert decoder.dynamic_batching.default_queue_policy.default_timeout_microseconds == 3_000_000


def test_open_clips_own_filter_for_what_is_not_square() -> None:
    assert image_config(resize_mode="shortest")["interpolation"] == "bilinear"
    assert image_config(resize_mode="shortest", width=48)["interpolation"] == "bicubic"
    assert image_config(resize_mode="squash", width=48)["interpolation"] == "bilinear"
    assert image_config(width=48)["size"] == [32, 48]


def test_the_checked_in_files_are_those_of_the_default_model() -> None:
    image = ImageSpec(224, 224, (0.0,) * 3, (1.0,) * 3, "bicubic", "shortest", (0, 0, 0))
    made = dali_files(image, Settings())
    there = json.loads((templates() / "preprocess_dali" / "1" / "images.json").read_text())
    assert json.loads(made["preprocess_dali/1/images.json"]) == there
    assert {*made, "preprocess_dali/config.pbtxt"} == ADDED
    assert all((templates() / path).is_file() for path in ADDED)


def test_naflex_is_refused_before_anything_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hf_siglip2(tmp_path / "checkpoint", max_num_patches=60, num_patches=36)
    before = sorted(tmp_path.iterdir())
    assert main(["export", str(tmp_path / "checkpoint"), str(tmp_path / "out"), "--preprocess", "dali"]) == 2
    assert "--preprocess dali with a NaFlex tower" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_a_naflex_repository_stays_with_the_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hf_siglip2(tmp_path / "checkpoint", max_num_patches=60, num_patches=36)
    repository = tmp_path / "out"
    assert main(["export", str(tmp_path / "checkpoint"), str(repository)]) == 0
    before = files(repository)
    assert main(["configure", str(repository), "--preprocess", "dali"]) == 2
    assert "--preprocess dali with a NaFlex tower" in capsys.readouterr().err
    assert files(repository) == before


def test_a_server_without_dali_refuses(exported: dict[str, Path], tmp_path: Path, capsys) -> None:
    embedded = find_server("embedded", tmp_path)
    check_fit(exported["cpu"], embedded)
    assert main(["serve", str(exported["dali"]), "--server", "embedded"]) == 2
    said = capsys.readouterr().err
    assert "preprocess_dali" in said
    assert "needs Triton's backend 'dali'" in said
    assert "--preprocess cpu" in said
