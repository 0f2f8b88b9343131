"""A run that does not go to its end: the server is killed, or somebody interrupts. Nothing measured is lost."""

from __future__ import annotations

import contextlib
import csv
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kserve_server import Server, serving
from tritonclip_bench.load.loadrun import was_interrupted

SERVE = """
import sys, time
from kserve_server import Server, serving
with serving(Server(text_limit=64), workers=64) as server:
    print(server.address, flush=True)
    time.sleep(120)
"""


@contextlib.contextmanager
def bench(address: str, result: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """`tritonclip bench` in a process group of its own, as a terminal starts it."""
    line = [sys.executable, "-m", "tritonclip_client.main", "bench", "--address", address, "--scenario", "text"]
    line += ["--users", "4", "--warmup", "0", "--progress", "--json", str(result), *options]
    pipe = subprocess.PIPE
    process = subprocess.Popen(line, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_until_measuring(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if "s measured" in line:
            return
    raise AssertionError("it ended before it measured")


def killable_server() -> subprocess.Popen[str]:
    paths = os.pathsep.join(sys.path)
    environment = {**os.environ, "PYTHONPATH": paths}
    return subprocess.Popen([sys.executable, "-c", SERVE], stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.parametrize(
    "options", [[], pytest.param(["--rate", "50"], marks=pytest.mark.slow)], ids=["closed loop", "open loop"]
)
def test_a_server_that_is_killed(options: list[str], tmp_path: Path) -> None:
    result, samples = tmp_path / "result.json", tmp_path / "samples.csv.gz"
    with killable_server() as server:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        options = [*options, "--duration", "60s", "--samples", str(samples)]
        with bench(address, result, *options) as process:
            wait_until_measuring(process)
            server.kill()
            begun_s = time.monotonic()
            out, _ = process.communicate(timeout=60)
    assert time.monotonic() - begun_s < 20
    assert process.returncode == 1
    results = json.loads(result.read_text())["results"]
    assert "the server stopped answering after" in results["broken"]
    assert "the server stopped answering after" in out
    assert results["total"]["requests"] > 0
    # The window ends where the answers end, so that the rates are those of a server that was there.
    assert f"after {results['window_s']:.1f} s" in results["broken"]
    assert results["timeline"]["answered"][0] > 0
    with gzip.open(samples, "rt") as file:
        rows = list(csv.DictReader(file))
    assert sum(row["outcome"] == "ok" for row in rows) == results["total"]["requests"]
    assert address not in json.dumps(results)


def to_the_group(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGINT)


def to_the_parent(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)


def terminate(process: subprocess.Popen[str]) -> None:
    process.terminate()


@pytest.mark.parametrize(
    ("interrupt", "options"),
    [
        (to_the_group, []),
        pytest.param(to_the_parent, [], marks=pytest.mark.slow),
        pytest.param(terminate, [], marks=pytest.mark.slow),
        pytest.param(to_the_group, ["--processes", "2"], marks=pytest.mark.slow),
        pytest.param(to_the_parent, ["--processes", "2"], marks=pytest.mark.slow),
        pytest.param(terminate, ["--processes", "2"], marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run(
    interrupt: Callable[[subprocess.Popen[str]], None], options: list[str], tmp_path: Path
) -> None:
    result = tmp_path / "result.json"
    with (
        serving(Server(text_limit=64), workers=64) as server,
        bench(server.address, result, "--duration", "60s", *options) as process,
    ):
        wait_until_measuring(process)
        interrupt(process)
        out, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "Traceback" not in error
    results = json.loads(result.read_text())["results"]
    assert was_interrupted(results["broken"])
    assert results["broken"] == f"interrupted after {results['window_s']:.1f} s"
    assert results["total"]["requests"] > 0
    assert "embed_text" in out
    assert "interrupted after" in out
