"""Every command and Python example of the README and of two pages is run, or stands below with the reason why not."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tritonclip_serve import TritonServer

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "docs" / "exporting.md", ROOT / "docs" / "protocol.md"]
BLOCKS = [block for page in PAGES for block in re.findall(r"```(\w+)\n(.*?)```", page.read_text("utf-8"), re.DOTALL)]
COMMANDS = [
    line.removeprefix("$ ")
    for language, text in BLOCKS
    if language == "console"
    for line in text.splitlines()
    if line.startswith("$ ")
]
EXAMPLES = [text for language, text in BLOCKS if language == "python"]

NOT_RUN = {
    "make demo": "test_demo.py runs the command behind it, `tritonclip demo`",
    "make test": "it is what runs this",
    "pip install -c constraints.txt '.[export,serve]'": "`make install` did the same, with more extras",
    "tritonclip engine build repository --runtime tensorrt": "needs TensorRT's libraries and a GPU",
    "tritonclip bench gpu --repository repository": "needs a GPU; test_bench_gpu.py runs it with --device cpu",
    "tritonclip serve repository --server path": "needs a tritonserver on PATH; test_image.py runs it with one",
    "tritonclip export hf-hub:ORG/REPO repository": "needs a model hub",
    "tritonclip export ViT-B-32 repository --pretrained laion2b_s34b_b79k": "needs a model hub",
}
# These export a whole ViT-B-32, which takes more than a minute.
SLOW = [command for command in COMMANDS if "ViT-B-32" in command and command not in NOT_RUN]
SERVE = "tritonclip serve repository"
EXPORTS = [c for c in COMMANDS if c.startswith("tritonclip export my-clip")]
MODELS = [c for c in COMMANDS if c.startswith("tritonclip models")]
LINT = "tritonclip engine lint repository"
CONFIGURES = [c for c in COMMANDS if c.startswith("tritonclip configure")]
CLASSIFIERS = [c for c in COMMANDS if c.startswith("tritonclip classifier")]
ASKING = ("classify", "embed", "similarity", "bench")
QUESTIONS = [c for c in COMMANDS if c.split()[:2][-1] in ASKING and c not in NOT_RUN]


@pytest.fixture
def folder(tmp_path: Path, demo: Path, demo_repository: Path) -> Path:
    """A user's working directory: the README's names, filled with the demo's files."""
    shutil.copytree(demo / "checkpoint", tmp_path / "my-clip")
    for name in ("my-lora", "style-lora", "domain-lora"):
        shutil.copytree(demo / "adapter", tmp_path / name)
    image = next(path for path in sorted((demo / "images").iterdir()) if path.suffix in (".png", ".jpg"))
    shutil.copy(image, tmp_path / "photo.jpg")
    return tmp_path


def run(command: str, folder: Path) -> str:
    words = shlex.split(command)
    assert words[0] == "tritonclip"
    line = [sys.executable, "-m", "tritonclip_client.main", *words[1:]]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_every_command_is_accounted_for() -> None:
    known = [
        *NOT_RUN,
        *SLOW,
        *EXPORTS,
        *QUESTIONS,
        *MODELS,
        *CLASSIFIERS,
        *CONFIGURES,
        SERVE,
        LINT,
        "tritonclip check repository",
    ]
    assert sorted(COMMANDS) == sorted(known)
    assert len(EXAMPLES) == 2


# The first of them, and that of the GPU path, in every run; all in `make test-all`.
EXPORT_ROWS = [
    pytest.param(command, marks=() if command == EXPORTS[0] or "fp16" in command else pytest.mark.slow)
    for command in EXPORTS
]


@pytest.mark.parametrize("command", EXPORT_ROWS)
def test_exporting_commands(command: str, folder: Path) -> None:
    assert "parity against" in run(command, folder)
    assert "files as exported" in run("tritonclip check repository", folder)


@pytest.mark.parametrize("command", MODELS)
def test_the_table_of_models(command: str, folder: Path) -> None:
    assert "ViT-B-16-SigLIP" in run(command, folder)


@pytest.mark.parametrize("command", CLASSIFIERS)
def test_a_classifier_of_fixed_labels(command: str, folder: Path, demo: Path, demo_repository: Path) -> None:
    shutil.copytree(demo_repository, folder / "repository")
    shutil.copy(demo / "labels.txt", folder)
    run(command, folder)
    assert (folder / "repository" / "classify_shapes" / "config.pbtxt").is_file()
    assert "files as exported" in run("tritonclip check repository", folder)


@pytest.mark.parametrize("command", CONFIGURES)
def test_settings_are_changed_in_place(command: str, folder: Path, demo_repository: Path) -> None:
    shutil.copytree(demo_repository, folder / "repository")
    assert "(was 32)" in run(command, folder)
    assert "files as exported" in run("tritonclip check repository", folder)


@pytest.mark.slow
@pytest.mark.parametrize("command", SLOW)
def test_exports_of_a_whole_vit_b_32(command: str, folder: Path) -> None:
    if "finetuned.pt" in command:
        from tritonclip_export.checkpoints.load import load_checkpoint
        from tritonclip_export.frameworks import torch

        torch.save(load_checkpoint("ViT-B-32", random_weights=1).state_dict, folder / "finetuned.pt")
    assert "512 dimensions" in run(command, folder)


def test_the_graphs_are_those_that_tensorrt_takes(folder: Path, demo_repository: Path) -> None:
    (folder / "repository").symlink_to(demo_repository)
    assert "among those of" in run(LINT, folder)


def test_serve_starts_and_stops(folder: Path, demo_repository: Path) -> None:
    (folder / "repository").symlink_to(demo_repository)
    ports = ["--grpc-port", "0", "--metrics-port", "0", "--log-file", str(folder / "server.log")]
    line = [sys.executable, "-m", "tritonclip_client.main", *shlex.split(SERVE)[1:], *ports]
    with subprocess.Popen(line, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            first = process.stdout.readline()
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=60) == 0, first
        finally:
            process.kill()
    assert "ready" in first


@pytest.mark.parametrize("command", QUESTIONS)
def test_questions_to_a_running_server(command: str, folder: Path, server: TritonServer) -> None:
    # A test has no half minute for a load test; all else is as it stands.
    command = command.replace("--duration 30s", "--duration 3s --warmup 1s")
    assert run(f"{command} --address {server.grpc_address}", folder).strip()
    for output in ("embeddings.npy", "result.json"):
        assert (folder / output).exists() == (output in command)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_python_examples(number: int, folder: Path, server: TritonServer) -> None:
    code = EXAMPLES[number].replace("127.0.0.1:8001", server.grpc_address)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONWARNINGS"}
    line = [sys.executable, "-c", code + "\nassert 'torch' not in __import__('sys').modules\n"]
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
