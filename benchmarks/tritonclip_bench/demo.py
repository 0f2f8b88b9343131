"""The whole path on this machine: LoRA in, answers over gRPC out, what they cost, and a clean end."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tritonclip_bench.errors import DemoError
from tritonclip_bench.processes import running
from tritonclip_client.table import format_table

CHECKOUT = Path(__file__).resolve().parents[2]
DEMO = CHECKOUT / "export" / "demo"
COLUMNS = ("image", "shows", "answer", "probability", "before the merge")


def check_checkout() -> None:
    """Raise DemoError where the demo's checkpoint and images are not beside the code."""
    if not (DEMO / "checkpoint").is_dir():
        raise DemoError(
            f"the demo's checkpoint is not at {DEMO}: it comes with the source, not with the installed package; "
            "clone the repository and run `make demo` there"
        )


def make_folder(folder: Path) -> None:
    """Make the folder of the demo's results, or raise DemoError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DemoError(f"{folder} cannot be made a folder ({error.strerror}); give another one") from None


def export_repository(repository: Path, precision: str = "fp32") -> None:
    """Merge the demo's LoRA into its checkpoint and export both towers."""
    checkpoint, adapter = DEMO / "checkpoint", DEMO / "adapter"
    options = ("--adapter", adapter, "--name", "demo", "--precision", precision, "--force")
    _tritonclip("export", checkpoint, repository, *options)


def answers_before_merge() -> dict[str, dict[str, Any]]:
    """What the base model says in PyTorch, without the adapter: file name to label and probability."""
    command = [sys.executable, "-m", "tritonclip_export.zero_shot", DEMO / "checkpoint", *images()]
    command += ["--labels", DEMO / "labels.txt"]
    output = _run(command, stdout=subprocess.PIPE)
    return {Path(path).name: answer for path, answer in json.loads(output).items()}


def classify(address: str) -> list[tuple[str, str, float]]:
    """Ask the server over gRPC; (file name, label, probability) per image."""
    from tritonclip_client import ClipClient

    with ClipClient(address) as client:
        results = client.classify(images(), labels(), top_k=1)
    return [(path.name, result.label, result.probability) for path, result in zip(images(), results, strict=True)]


def load_test(address: str, options: Sequence[object]) -> None:
    """A short load of single images from the demo; prints the bench command's own table."""
    _tritonclip("bench", "--address", address, "--images", DEMO / "images", "--progress", *options)


def render(served: Sequence[tuple[str, str, float]], before: Mapping[str, Mapping[str, Any]]) -> str:
    """The images, what they show, and both models' answers."""
    truth = {name: entry["label"] for name, entry in _image_table().items()}
    rows = [
        (name, truth[name], label, f"{probability:.1%}", str(before[name]["label"]))
        for name, label, probability in served
    ]
    right = sum(label == truth[name] for name, label, _ in served)
    right_before = sum(before[name]["label"] == truth[name] for name, _, _ in served)
    summary = f"{right} of {len(rows)} right with the LoRA merged, {right_before} before"
    return f"{format_table(COLUMNS, rows)}\n\n{summary}"


def images() -> list[Path]:
    """The checked-in images."""
    return [DEMO / "images" / name for name in _image_table()]


def labels() -> list[str]:
    """All labels that the demo's model chooses from."""
    return (DEMO / "labels.txt").read_text(encoding="utf-8").splitlines()


def _image_table() -> dict[str, dict[str, str]]:
    table: dict[str, dict[str, str]] = json.loads((DEMO / "images" / "images.json").read_text(encoding="utf-8"))
    return table


def _tritonclip(*words: object) -> None:
    _run([sys.executable, "-m", "tritonclip_client.main", *words])


def _run(command: Sequence[object], stdout: int | None = None) -> str:
    words = [str(word) for word in command]
    with running(words, stdout) as process:
        output, _ = process.communicate()
    if process.returncode != 0:
        raise DemoError(f"this step of the demo failed with status {process.returncode}: {' '.join(words)}")
    return output or ""
