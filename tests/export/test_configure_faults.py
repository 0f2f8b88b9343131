"""`tritonclip configure`: what it refuses, and what an interrupt, a damaged file or somebody else leaves behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from configuring import configure, content, parsed
from fake_tensorrt import FakeToolkit
from tritonclip_client.main import main
from tritonclip_export.engine.build import EngineRequest, build
from tritonclip_export.errors import RepositoryError
from tritonclip_export.repository.in_place import repository_lock
from tritonclip_export.repository.manifest import file_hash, read_manifest, verify
from tritonclip_export.repository.write import _replace
from tritonclip_export.settings import Settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-queue-size", "-1"], "max_queue_size is -1; it must be at least 1"),
        (["--encoder-instances", "2"], "encoder_instances is 2 for the runtime onnxruntime-python"),
        (["--queue-delay-us", "5"], "queue_delay_us is 5 for the runtime onnxruntime-python"),
        (["--graph-batches", "1,2"], "graph_batches is given for the runtime onnxruntime-python; only tensorrt"),
        (["--graph-batches", "one"], "--graph-batches one given; write sizes like 1,8,32, none or default"),
        (["--runtime", "tensorrt"], "the runtime tensorrt was asked for, and image_encoder has no engine; build it"),
        (["--release", "2.51"], "release is '2.51'; write the release of tritonserver as YY.MM, like 26.04"),
        (["--max-image-batch", "0"], "image_batch is 0; it must be at least 1"),
        (["--threads", "-1"], "threads is -1; it must be at least 0"),
        (["--queue-seconds", "0"], "queue_seconds is 0; it must be from 1e-06 to 1e[+]06"),
        (["--queue-seconds", "1e-9"], "queue_seconds is 1e-09; it must be from"),
        (["--queue-seconds", "1e300"], "queue_seconds is 1e[+]300; it must be from"),
        (["--queue-seconds", "nan"], "queue_seconds is nan; it must be from"),
        (
            ["--max-image-batch", "3000000000"],
            "image_batch is 3000000000; it must be at least 1 and at",
        ),
        (["--release", "26.13"], "release is '26.13'; write the release"),
        (["--release", "２６.０４"], "write the release of tritonserver as YY.MM"),
    ],
)
def test_what_cannot_be_had_is_refused_and_changes_nothing(
    options: list[str], message: str, repository: Path, capsys
) -> None:
    before = content(repository)
    assert main(["configure", str(repository), *options]) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(error)
    assert content(repository) == before


def test_a_machine_that_serves_has_all_that_it_needs(repository: Path) -> None:
    code = "import sys; sys.modules.update(dict.fromkeys(['torch', 'onnx', 'open_clip', 'onnxruntime']))"
    code += (
        f"; from tritonclip_client.main import main; sys.exit(main(['configure', {str(repository)!r}, *sys.argv[1:]]))"
    )
    line = [sys.executable, "-c", code, "--preprocess", "dali", "--runtime", "onnxruntime"]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert parsed(repository)["image_encoder"].backend == "onnxruntime"


def test_a_repository_that_was_changed_is_left_alone(repository: Path, capsys) -> None:
    path = repository / "preprocess" / "config.pbtxt"
    path.write_text(path.read_text() + "\n")
    assert main(["configure", str(repository), "--max-image-batch", "4"]) == 2
    assert "preprocess/config.pbtxt was changed" in capsys.readouterr().err


def test_no_repository(tmp_path: Path, capsys) -> None:
    assert main(["configure", str(tmp_path / "nothing"), "--threads", "1"]) == 2
    assert f"{tmp_path / 'nothing'} is no model repository: manifest.json cannot be read" in capsys.readouterr().err


def test_the_advice_of_a_server_that_is_older_can_be_followed(repository: Path) -> None:
    configure(repository, "--release", "26.04", "--max-queue-size", "50")
    configure(repository, "--release", "24.10")
    back = configure(repository, "--release", "26.04")
    assert back["text_encoder"].dynamic_batching.default_queue_policy.max_queue_size == 50


def test_a_setting_goes_back_to_its_default(repository: Path, capsys) -> None:
    build(EngineRequest(repository, tensorrt_runtime=True), FakeToolkit())
    before = parsed(repository)
    configure(repository, "--graph-batches", "1,32", "--release", "26.04", "--max-queue-size", "8")
    assert main(["configure", str(repository), "--max-image-batch", "16"]) == 2
    assert "--graph-batches 32 is set; image_encoder serves batches of 1 to 16; give others" in capsys.readouterr().err
    default = ("--graph-batches", "default", "--max-queue-size", "1024", "--release", "24.10")
    assert configure(repository, *default) == before


def test_looking_needs_no_right_to_write(repository: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("tritonclip_export.repository.in_place.Path.mkdir", lambda *_, **__: pytest.fail("written"))
    configure(repository)
    assert "image_batch           32" in capsys.readouterr().out


def test_engines_that_are_damaged_can_be_left(repository: Path) -> None:
    written = build(EngineRequest(repository, tensorrt_runtime=True), FakeToolkit())
    engine = repository / written["engines"]["image_encoder"][0]["file"]
    engine.write_bytes(engine.read_bytes()[:100])
    assert main(["configure", str(repository), "--max-text-batch", "8"]) == 2
    assert main(["configure", str(repository), "--runtime", "onnxruntime-python"]) == 0
    assert parsed(repository)["image_encoder"].backend == "python"


@pytest.mark.parametrize("what", ["dali", "cpu"])
def test_an_interrupted_change_leaves_nothing(what: str, repository: Path, monkeypatch) -> None:
    if what == "cpu":
        configure(repository, "--preprocess", "dali")
    before = sorted(repository.rglob("*")), content(repository)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", interrupt)
        assert main(["configure", str(repository), "--preprocess", what]) == 130
    assert (sorted(repository.rglob("*")), content(repository)) == before
    assert not any(path.name.startswith(".") for path in repository.parent.iterdir())


def test_an_interrupt_after_the_last_step_changes_nothing_any_more(repository: Path, monkeypatch) -> None:
    replace = Path.replace

    def interrupt(*given: Path) -> None:
        replace(*given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", interrupt)
        assert main(["configure", str(repository), "--max-image-batch", "4"]) == 130
    assert parsed(repository)["image_encoder"].max_batch_size == 4
    verify(repository)


def test_sigterm_ends_a_change_as_ctrl_c_does(repository: Path, monkeypatch) -> None:
    monkeypatch.setattr(Path, "replace", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    before = content(repository)
    assert main(["configure", str(repository), "--max-image-batch", "4"]) == 130
    assert content(repository) == before
    assert not any(path.name.startswith(".") for path in repository.parent.iterdir())


def test_an_export_over_a_repository_waits_for_who_changes_it(repository: Path) -> None:
    """And who waited for the old one finds the new one."""
    new = shutil.copytree(repository, repository.parent / "new")
    (new / "manifest.json").write_text((new / "manifest.json").read_text().replace('"created": "2', '"created": "3'))
    with repository_lock(repository):
        exporting = threading.Thread(target=_replace, args=(new, repository))
        exporting.start()
        configuring = threading.Thread(target=configure, args=(repository, "--max-image-batch", "4"))
        configuring.start()
        exporting.join(0.3)
        assert exporting.is_alive()
        assert configuring.is_alive()
    exporting.join()
    configuring.join()
    assert read_manifest(repository)["created"].startswith("3")
    verify(repository)


def test_folders_without_files_are_told(repository: Path) -> None:
    (repository / "preprocess_dali" / "1").mkdir(parents=True)
    with pytest.raises(RepositoryError, match="preprocess_dali/1 is an empty folder"):
        verify(repository)


def test_dali_needs_the_code_of_this_version(repository: Path, capsys) -> None:
    code = repository / "preprocess" / "1" / "clip_geometry.py"
    code.write_text(code.read_text() + "\n# Of another version.\n")
    path = repository / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["preprocess/1/clip_geometry.py"] = file_hash(code)
    path.write_text(json.dumps(manifest))
    assert main(["configure", str(repository), "--preprocess", "dali"]) == 2
    assert (
        "was exported by another version of tritonclip (preprocess/1/clip_geometry.py differs)"
        in capsys.readouterr().err
    )
    assert main(["configure", str(repository), "--max-image-batch", "4"]) == 0


def test_settings_of_a_later_version() -> None:
    with pytest.raises(RepositoryError, match="settings have color, unknown to this version"):
        Settings.from_dict({"color": "red"})
