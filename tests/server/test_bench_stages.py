"""The load test says where the time goes: a model that sleeps shows in its own row, and nowhere else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tritonclip_bench.server.stages import stages, with_late_answers
from tritonclip_serve import TritonServer
from tritonclip_serve.verified import NONE

SLEEP_MS = 50
KINDS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit")
ZERO = {"items": 0, "batches": 0} | {f"{kind}_{what}": 0 for kind in KINDS for what in ("count", "ns")}


def test_only_what_lies_between_counts() -> None:
    before = {"preprocess": {**ZERO, "success_count": 5, "success_ns": 10**12, "items": 5, "batches": 5}}
    change = {"success_count": 4, "success_ns": 8_000_000, "compute_infer_ns": 6_000_000, "items": 12, "batches": 3}
    after = {
        "preprocess": {key: value + change.get(key, 0) for key, value in before["preprocess"].items()},
        "idle": ZERO,
    }
    (found,) = stages(before, after).items()
    assert found[0] == "preprocess"
    assert (found[1]["requests"], found[1]["mean_batch"], found[1]["total_ms"], found[1]["compute_ms"]) == (
        4,
        4,
        2.0,
        1.5,
    )


def test_answers_from_the_cache_are_no_computing() -> None:
    change = {"success_count": 4, "cache_hit_count": 3, "compute_infer_ns": 2_000_000}
    (found,) = stages({}, {"cached_text_encoder": {**ZERO, **change}}).values()
    assert (found["cached"], found["compute_ms"]) == (3, 2.0)


def test_without_the_servers_word_nothing_is_said() -> None:
    assert stages(None, {}) == stages({}, None) == {}


# Where a sleep goes: a file of the model, and the line that it follows.
SLEEPS = {
    "preprocess": ("model.py", "    def execute(self, requests: list[Any]) -> list[Any]:\n"),
    "image_encoder": ("clip_onnx.py", "    def run(batch: np.ndarray) -> np.ndarray:\n"),
}


@pytest.mark.parametrize(
    ("model", "scenario", "flags"),
    [
        ("image_encoder", "mixed", ()),
        pytest.param("preprocess", "mixed", (), marks=pytest.mark.slow),
        # Without the encoder's own counts its time is what its ensemble took and the step before it did not.
        pytest.param("image_encoder", "image", ("--allow-metrics=false",), marks=pytest.mark.slow),
    ],
)
def test_a_sleep_is_found_in_its_stage(
    model: str, scenario: str, flags: tuple[str, ...], demo_repository: Path, tmp_path: Path
) -> None:
    (other,) = set(SLEEPS) - {model}
    repository, result = with_sleep(demo_repository, tmp_path / "repository", model), tmp_path / "result.json"
    ports = {"grpc_port": 0, "metrics_port": 0}
    with TritonServer(repository, **ports, log_path=tmp_path / "log", verify=NONE, extra_args=flags) as server:
        line = [sys.executable, "-m", "tritonclip_client.main", "bench", "--address", server.grpc_address]
        line += ["--scenario", scenario, "--users", "2", "--rate", "10", "--labels", "2"]
        line += ["--warmup", "1s", "--duration", "3s", "--json", str(result)]
        done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    measured = json.loads(result.read_text())["results"]
    found = measured["stages"]
    assert found[model]["compute_ms"] >= SLEEP_MS
    assert found[other]["compute_ms"] < SLEEP_MS
    assert found["embed_image"]["total_ms"] >= SLEEP_MS
    assert measured["total"]["latency_ms"]["p99"] >= SLEEP_MS
    assert measured["metrics"] is not bool(flags)
    assert found["image_encoder"].get("own_counts", False) is measured["metrics"]
    # The server's counts also hold the calls in flight when the window began, so of thirty calls it may fall below 0.
    assert abs(measured["client"]["outside_server_ms"]["embed_image"]) < SLEEP_MS / 2
    assert measured["server_cpu"].keys() >= {"tritonserver", "preprocess", "image_encoder"}
    assert (measured["rejected"], measured["gpus"]) == (0, [])
    assert set(SLEEPS) <= {row.split()[0] for row in done.stdout.splitlines() if row}
    assert "ms in the server" in done.stdout


def with_sleep(repository: Path, copy: Path, model: str) -> Path:
    """A copy of a repository in which `model` sleeps."""
    file, line = SLEEPS[model]
    path = shutil.copytree(repository, copy) / model / "1" / file
    code = path.read_text()
    assert line in code
    path.write_text(code.replace(line, f"{line}        __import__('time').sleep({SLEEP_MS / 1000})\n"))
    return copy


def test_an_encoder_has_what_its_ensemble_took_and_the_step_before_did_not() -> None:
    stage = {"queue_ms": 1.0, "input_ms": 0.0, "output_ms": 0.0, "compute_ms": 0.1}
    given = {
        "embed_text": {**stage, "requests": 10, "total_ms": 6.0},
        "tokenizer": {**stage, "requests": 10, "total_ms": 2.0},
        # The cache answered for half of them.
        "text_encoder": {**stage, "requests": 5, "total_ms": 1.1},
    }
    made = with_late_answers(given)["text_encoder"]
    assert (made["total_ms"], made["compute_ms"]) == (8.0, 7.0)
    assert with_late_answers({**given, "clip": stage}) == {**given, "clip": stage}
