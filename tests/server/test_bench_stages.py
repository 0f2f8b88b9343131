"""The load test says where the time goes: a model that sleeps shows in its own row, and nowhere else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tritonclip_bench.stages import stages
from tritonclip_serve import TritonServer

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


@pytest.fixture(scope="module")
def sleepy(demo_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = shutil.copytree(demo_repository, tmp_path_factory.mktemp("sleepy") / "repository")
    model = repository / "preprocess" / "1" / "model.py"
    line = "    def _answer(self, request: Any, ready: Mapping[int, clip_preprocess.Pixels] | None = None) -> Any:\n"
    code = model.read_text()
    assert line in code
    model.write_text(code.replace(line, f"{line}        __import__('time').sleep({SLEEP_MS / 1000})\n"))
    return repository


def test_a_sleep_is_found_in_its_stage(sleepy: Path, tmp_path: Path) -> None:
    loop = ["--users", "2", "--rate", "10"]
    result = tmp_path / "result.json"
    with TritonServer(sleepy, grpc_port=0, http_port=0, metrics_port=0, log_path=tmp_path / "log") as server:
        line = [sys.executable, "-m", "tritonclip_client.main", "bench", "--address", server.grpc_address, *loop]
        line += ["--warmup", "1s", "--duration", "4s", "--json", str(result)]
        done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    measured = json.loads(result.read_text())["results"]
    found = measured["stages"]
    assert found["preprocess"]["compute_ms"] >= SLEEP_MS
    assert found["image_encoder"]["compute_ms"] < SLEEP_MS
    assert found["embed_image"]["total_ms"] >= SLEEP_MS
    assert measured["total"]["latency_ms"]["p99"] >= SLEEP_MS
    assert {"preprocess", "image_encoder"} <= {row.split()[0] for row in done.stdout.splitlines() if row}
    assert "ms in the server" in done.stdout
