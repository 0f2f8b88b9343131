"""The locustfile as people start it: with the web interface, and spread over processes."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kserve_server import Server, serving

LOCUSTFILE = Path(__file__).parents[2] / "benchmarks" / "locustfile.py"


def locust(*options: object) -> list[str]:
    return [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), *map(str, options)]


def wait_for(get: Callable[[], Any], timeout_s: float = 60) -> Any:
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            if found := get():
                return found
        except OSError:
            pass
        assert time.monotonic() < deadline_s, "it took too long"
        time.sleep(0.1)


def test_the_web_interface_starts_a_run_with_its_own_values(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    base = f"http://127.0.0.1:{port}"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(path: str, **values: object) -> str:
        data = urllib.parse.urlencode(values).encode() if values else None
        with opener.open(base + path, data, timeout=30) as answer:
            text: str = answer.read().decode()
        return text

    line = locust("--web-host", "127.0.0.1", "--web-port", port, "--results", result)
    with serving(Server(text_limit=64)) as server, subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert "text_lengths" in wait_for(lambda: ask("/"))
            given = {"user_count": 3, "spawn_rate": 3, "scenario": "text", "warmup": 0, "rate": 40, "measure": "2s"}
            ask("/swarm", host="127.0.0.1:9", **given)
            wait_for(lambda: json.loads(ask("/stats/requests"))["state"] == "stopped")
            assert not result.exists()
            ask("/swarm", host=server.address, **given)
            results = json.loads(wait_for(lambda: result.exists() and result.read_text()))
        finally:
            process.terminate()
            _, error = process.communicate(timeout=60)
    assert "error: no ready server at 127.0.0.1:9" in error
    assert "Traceback" not in error
    assert results["window_s"] == pytest.approx(2, abs=0.5)
    assert results["open_loop"]["offered_per_s"] == pytest.approx(40, rel=0.5)
    assert results["broken"] is None


@pytest.mark.parametrize(
    "options", [[], pytest.param(["--rate", "60"], marks=pytest.mark.slow)], ids=["closed loop", "open loop"]
)
def test_workers_are_one_measurement(options: list[str], tmp_path: Path) -> None:
    result, samples = tmp_path / "result.json", tmp_path / "samples.csv"
    given = ["bench", "--scenario", "text", "--users", "3", "--processes", "2", "--warmup", "0", "--duration", "2s"]
    given += ["--json", str(result), "--samples", str(samples)]
    with serving(Server(text_limit=64), workers=64) as server:
        line = [sys.executable, "-m", "tritonclip_client.main", *given, "--address", server.address, *options]
        done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(result.read_text())["results"]
    total = results["total"]
    assert results["broken"] is None
    assert results["client_processes"] == 2
    assert results["client_cpu_cores"] < results["client_cpu_cores_total"]
    assert results["client"]["serialise_ms"] > 0
    assert results["window_s"] == pytest.approx(2, abs=0.5)
    assert sum(total["distribution"]["counts"]) == total["requests"] + total["unanswered"]
    assert len(samples.read_text().splitlines()) == 1 + total["requests"] + total["unanswered"]
    # No worker sends what another one has sent.
    texts = [item for call in server.calls for item in call.items]
    assert len(set(texts)) == len(texts)
    if options:
        assert results["open_loop"]["offered_per_s"] == pytest.approx(60, rel=0.3)
    # What one worker alone sends would be half of what arrived while the window was open.
    assert total["requests"] > 0.6 * len(server.calls) * results["window_s"] / (results["window_s"] + 2)
