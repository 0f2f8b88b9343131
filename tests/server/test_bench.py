"""The load test against a real server, through the command and through plain locust."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tritonclip_bench import load

LOCUSTFILE = Path(load.__file__).with_name("locustfile.py")
SHORT = ("--duration", "3s", "--warmup", "1s", "--users", "4")


def bench(*arguments, timeout_s=120):
    command = [sys.executable, "-m", "tritonclip_client.main", "bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)


@pytest.fixture
def dead_address():
    """An address where nothing listens while the test runs: bound, but not listening."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


def test_the_command_prints_a_table_and_writes_the_result(server, tmp_path):
    result = tmp_path / "result.json"
    done = bench("--address", server.grpc_address, *SHORT, "--instance", "g6.xlarge", "--progress", "--json", result)
    assert done.returncode == 0, done.stderr
    assert "embed_image" in done.stdout
    assert "images per dollar, " in done.stdout
    assert "items/s, 0 failures" in done.stderr
    report = json.loads(result.read_text())
    total = report["results"]["total"]
    assert total["items_per_s"] > 0
    assert total["failures"] == 0
    assert total["latency_ms"]["p50"] <= total["latency_ms"]["p95"] <= total["latency_ms"]["max"]
    assert report["results"]["window_s"] == pytest.approx(3, abs=1.5)
    assert report["cost"]["dollars_per_million"] == pytest.approx(1e6 / total["items_per_s"] * 0.8048 / 3600)
    assert len(report["server"]["fingerprint"]) == 64


@pytest.mark.parametrize(
    ("scenario", "models"),
    [("text", {"embed_text"}), ("clip", {"clip"}), ("mixed", {"embed_image", "embed_text", "clip"})],
)
def test_every_scenario_is_served_without_failures(server, tmp_path, scenario, models):
    result = tmp_path / "result.json"
    done = bench("--address", server.grpc_address, *SHORT, "--scenario", scenario, "--batch-size", 2, "--json", result)
    assert done.returncode == 0, done.stderr
    results = json.loads(result.read_text())["results"]
    assert set(results["by_model"]) == models
    assert results["total"]["items_per_s"] > 0
    assert results["total"]["items"] == 2 * results["total"]["requests"]
    assert sum(summary["items"] for summary in results["by_model"].values()) == results["total"]["items"]


def test_plain_locust_runs_the_file(server, tmp_path):
    result = tmp_path / "result.json"
    options = ("--headless", "-u", "2", "-r", "2", "-t", "4s", "--warmup", "1s", "--only-summary")
    command = [sys.executable, "-m", "locust", "-f", LOCUSTFILE, *options]
    command += ["--host", server.grpc_address, "--results", result]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "embed_image" in done.stderr + done.stdout
    assert json.loads(result.read_text())["total"]["requests"] > 0


def test_refused_images_are_failures_and_not_speed(server, tmp_path):
    (tmp_path / "not_an_image.jpg").write_text("this is a text")
    result = tmp_path / "result.json"
    done = bench("--address", server.grpc_address, *SHORT, "--images", tmp_path, "--json", result)
    assert done.returncode == 1
    assert "INVALID_ARGUMENT" in done.stdout
    total = json.loads(result.read_text())["results"]["total"]
    assert total["items_per_s"] == 0
    assert total["failures"] > 0
    assert total["latency_ms"] is None


def test_a_batch_above_the_servers_limit_is_refused_with_the_limit(server):
    done = bench("--address", server.grpc_address, "--batch-size", 10_000)
    assert done.returncode == 2
    assert "--batch-size 10000; embed_image on this server takes 1 to " in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_server_that_is_down_is_one_line_and_exit_code_3(dead_address):
    done = bench("--address", dead_address)
    assert done.returncode == 3
    assert done.stderr.startswith(f"error: no ready server at {dead_address}")
    assert "tritonclip serve" in done.stderr
    assert done.stderr.count("\n") == 1


def test_plain_locust_says_the_same(dead_address):
    command = [sys.executable, "-m", "locust", "-f", LOCUSTFILE, "--headless", "-t", "4s", "--host", dead_address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3
    assert f"error: no ready server at {dead_address}" in done.stderr


def test_a_repository_without_classifiers_says_how_to_build_one(server):
    done = bench("--address", server.grpc_address, "--scenario", "classify")
    assert done.returncode == 2
    assert "the server has no classifier; build one" in done.stderr
    assert done.stderr.count("\n") == 1
