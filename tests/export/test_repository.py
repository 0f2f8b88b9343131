"""Nothing is overwritten, nothing is left half written."""

import io
import json
import re
import resource
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tiny_clip import PREPROCESS_CFG, write_tiny_checkpoint
from tritonclip_client.main import main
from tritonclip_export.errors import RepositoryError
from tritonclip_export.frameworks import open_clip
from tritonclip_export.parity.probes import to_uint8, transform_images
from tritonclip_export.repository import write as repository
from tritonclip_export.repository.manifest import verify
from tritonclip_export.repository.templates import templates


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("source") / "tiny")


@pytest.fixture(scope="module")
def exported(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "repository"
    assert main(["export", str(source), str(out), "--max-image-batch", "4"]) == 0
    return out


def test_a_whole_repository_is_written(exported: Path) -> None:
    manifest = verify(exported)
    assert {path.name for path in exported.iterdir() if path.is_dir()} == {
        path.parent.name for path in templates().glob("*/config.pbtxt")
    } - {"preprocess_dali"}
    assert [path.name for path in exported.parent.iterdir()] == ["repository"]
    assert manifest["parity"]["top1_agreement"] == 1.0
    assert min(c["cosine_min"] for c in manifest["parity"]["comparisons"]) >= 0.99999
    assert not any(path.is_symlink() for path in exported.rglob("*"))


def test_the_fingerprint_is_that_of_the_weights_and_the_spec(source: Path, exported: Path, tmp_path: Path) -> None:
    fingerprint = json.loads((exported / "manifest.json").read_text())["spec"]["fingerprint"]
    assert main(["export", str(source), str(tmp_path / "again")]) == 0
    other = write_tiny_checkpoint(tmp_path / "tiny", interpolation="bicubic")
    assert main(["export", str(other), str(tmp_path / "other")]) == 0
    prints = [verify(tmp_path / name)["spec"]["fingerprint"] for name in ("again", "other")]
    assert prints[0] == fingerprint
    assert prints[1] != fingerprint


def test_the_towers_warm_up_on_the_image_and_the_text(exported: Path) -> None:
    serialised = (exported / "preprocess" / "warmup" / "image").read_bytes()
    image = Image.open(io.BytesIO(serialised[4:]))
    expected = to_uint8(transform_images([image], PREPROCESS_CFG), PREPROCESS_CFG).numpy()
    pixels = np.fromfile(exported / "image_encoder" / "warmup" / "pixels", np.uint8)
    assert np.array_equal(pixels.reshape(expected.shape), expected)
    ids = np.fromfile(exported / "text_encoder" / "warmup" / "input_ids", np.int32)
    assert ids.tolist() == open_clip.SimpleTokenizer(context_length=16)(["a photo of a cat"])[0].tolist()


def test_a_directory_that_holds_a_repository_is_left_alone(source: Path, exported: Path, capsys) -> None:
    before = verify(exported)
    assert main(["export", str(source), str(exported)]) == 2
    assert "already holds a model repository; give another directory, or --force" in capsys.readouterr().err
    assert verify(exported) == before


def test_force_replaces_a_repository_and_nothing_else(source: Path, tmp_path: Path, capsys) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    assert main(["export", str(source), str(precious), "--force"]) == 2
    assert "is no model repository" in capsys.readouterr().err
    assert (precious / "thesis.txt").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    assert main(["export", str(source), str(tmp_path / "empty"), "--name", "first"]) == 0
    assert main(["export", str(source), str(tmp_path / "empty"), "--name", "second", "--force"]) == 0
    assert verify(tmp_path / "empty")["spec"]["name"] == "second"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "precious"]


def test_a_failure_inside_leaves_no_trace(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), repository.staged(tmp_path / "made" / "for it" / "out"):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_parents_that_somebody_else_uses_meanwhile_stay(tmp_path: Path) -> None:
    with pytest.raises(InterruptedError), repository.staged(tmp_path / "made" / "for it" / "out"):
        _use(tmp_path / "made" / "other")
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["other"]


def _use(folder: Path) -> None:
    folder.mkdir()
    raise InterruptedError


@pytest.mark.parametrize("limit", [10_000, 400_000, 6_000_000], ids=["templates", "image tower", "text tower"])
def test_a_disk_that_takes_no_more_is_one_clear_error(source: Path, tmp_path: Path, limit: int, capsys) -> None:
    """No file may grow above the limit, as with a quota; a full disk comes at the same places."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        status = main(["export", str(source), str(tmp_path / "deep" / "out")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert status == 2
    assert re.search("error: .*out cannot be written .*; free space there, or give", capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_numpys_error_of_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="free space there"), repository.staged(tmp_path / "out"):
        raise OSError("problem writing element 292864 to file")
    assert list(tmp_path.iterdir()) == []


def test_a_repository_inside_a_repository_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").touch()
    with pytest.raises(RepositoryError, match=f"deep/out is inside the model repository {tmp_path}; give"):
        repository.check_output(tmp_path / "deep" / "out", force=True)


def test_a_parent_that_is_a_file_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(RepositoryError, match="out cannot be written .*File exists"),
        repository.staged(tmp_path / "file" / "out"),
    ):
        pass
