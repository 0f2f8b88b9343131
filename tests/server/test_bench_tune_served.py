"""`tritonclip bench tune` with the real server: it finds bad settings out, and Ctrl-C leaves nothing behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from configuring import configure, content
from tritonclip_export.repository.manifest import file_hash, read_manifest, verify
from tritonclip_serve import TritonServer
from tuning import settings, with_idle_cores


@pytest.fixture
def repository(demo_repository: Path, tmp_path: Path) -> Path:
    return with_idle_cores(demo_repository, tmp_path / "served" / "repository")


@pytest.fixture
def command(repository: Path, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    def start(*options: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "tritonclip_client.main", "bench", "tune", str(repository), *options]
        words += ["--warmup", "1s", "--json", str(tmp_path / "tuned.json")]
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


def make_sleepy(repository: Path) -> None:
    """Let every image wait for 50 ms, so that the gain of more processes exceeds whatever else the machine does."""
    model = repository / "preprocess" / "1" / "model.py"
    code = model.read_text()
    slow = code.replace(
        "        return [self._answer(", "        time.sleep(0.05 * len(requests))\n        return [self._answer("
    )
    assert slow != code
    model.write_text(slow.replace("import json\n", "import json\nimport time\n", 1))
    manifest = read_manifest(repository)
    manifest["files"]["preprocess/1/model.py"] = file_hash(model)
    (repository / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_bad_settings_are_found_out_on_the_real_server(repository: Path, command, tmp_path: Path) -> None:
    """One process that waits for its images; a runtime that this server does not have is a failed trial."""
    make_sleepy(repository)
    # A batch goes to one process, whatever the others do.
    configure(repository, "--max-image-batch", "1")
    before = settings(repository)
    varied = ("--vary", "preprocess_threads=1,4", "--vary", "runtime=onnxruntime-python,onnxruntime")
    process = command(*varied, "--duration", "3s", "--write", "--budget", "14m")
    out, err = process.communicate()
    assert process.returncode == 0, err
    record = json.loads((tmp_path / "tuned.json").read_text())
    assert (record["verdict"], record["written"], record["broken"]) == ("better", True, None), out
    assert record["best"]["changes"] == {"preprocess_threads": 4}
    assert record["best"]["ratio"]["mean"] > 2
    failed = {trial["label"]: trial["failed"] for trial in record["trials"] if trial["failed"]}
    assert len(failed) == 2
    assert all(
        reason.startswith("image_encoder of the repository needs Triton's backend 'onnxruntime'")
        for reason in failed.values()
    )

    verify(repository)
    assert settings(repository) == before.changed({"preprocess_threads": 4})
    assert sorted(path.name for path in repository.parent.iterdir()) == ["repository"]
    free = {"grpc_port": 0, "metrics_port": 0}
    with TritonServer(repository, log_path=tmp_path / "server.log", **free):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_the_trials_and_nothing_else(repository: Path, command, tmp_path, number: int) -> None:
    before = content(repository)
    process = command("--vary", "preprocess_threads=2,3", "--duration", "2s", "--write")
    for line in process.stderr:
        if "round 1" in line:
            break
    (folder,) = (path for path in repository.parent.iterdir() if path.name != "repository")
    # Into the load of the second trial, or the start of its server.
    time.sleep(4)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "broken: interrupted" in out
    assert content(repository) == before
    assert not folder.exists()
    record = json.loads((tmp_path / "tuned.json").read_text())
    assert record["broken"].startswith("interrupted")
    assert record["trials"][0]["rounds"]
    assert record["verdict"] is None
    assert not serving(folder)


def serving(folder: Path) -> list[str]:
    """Processes that still name a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().decode(errors="replace"))
        except OSError:
            continue
    return [words for words in found if str(folder) in words]
