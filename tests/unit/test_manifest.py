"""Writing and verifying `manifest.json`, without torch."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tritonclip_client.main import main
from tritonclip_export.configs import ENSEMBLES, read_config, write_configs
from tritonclip_export.errors import RepositoryError
from tritonclip_export.manifest import MANIFEST, verify, write_manifest

TEMPLATES = Path(__file__).parents[2] / "model_repository"
CONTENT = {
    "created": "2026-01-01T00:00:00+00:00",
    "spec": {"name": "m", "fingerprint": "abc", "precision": "float32", "runtime": "onnxruntime-python"},
}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name in ENSEMBLES:
        (tmp_path / name).mkdir()
        config = read_config(TEMPLATES / name / "config.pbtxt")
        config.parameters["fingerprint"].string_value = "abc"
        write_configs(tmp_path, {name: config})
    (tmp_path / "image_encoder").mkdir()
    (tmp_path / "image_encoder" / "model.onnx").write_bytes(b"weights")
    write_manifest(tmp_path, CONTENT)
    return tmp_path


def test_what_was_written_verifies(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(repository)["spec"]["name"] == "m"
    assert main(["check", str(repository)]) == 0
    assert "4 files as exported" in capsys.readouterr().out


def test_pythons_caches_do_not_count(repository: Path) -> None:
    (repository / "__pycache__").mkdir()
    (repository / "__pycache__" / "model.pyc").write_bytes(b"x")
    verify(repository)


def test_a_changed_a_missing_and_a_new_file_are_named(repository: Path) -> None:
    (repository / "image_encoder" / "model.onnx").write_bytes(b"other")
    shutil.rmtree(repository / "clip")
    (repository / "new.txt").write_text("x")
    with pytest.raises(RepositoryError) as caught:
        verify(repository)
    message = str(caught.value)
    assert "clip/config.pbtxt is missing" in message
    assert "new.txt is not in the manifest" in message
    assert "image_encoder/model.onnx was changed" in message


def test_a_mixed_up_fingerprint_is_found(repository: Path) -> None:
    manifest = json.loads((repository / MANIFEST).read_text())
    manifest["spec"]["fingerprint"] = "other"
    (repository / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(RepositoryError, match="another fingerprint"):
        verify(repository)


@pytest.mark.parametrize("content", [None, "{", '{"format": 99}'])
def test_no_manifest_no_repository(tmp_path: Path, content: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    if content is not None:
        (tmp_path / MANIFEST).write_text(content)
    assert main(["check", str(tmp_path)]) == 2
    assert "export" in capsys.readouterr().err


def test_checking_does_not_load_torch(repository: Path) -> None:
    code = (
        "import sys; from tritonclip_client.main import main; "
        f"main(['check', {str(repository)!r}]); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
