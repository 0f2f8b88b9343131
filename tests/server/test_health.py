"""`tritonclip health` against real servers: one that embeds, one that is gone, and ones whose model process died."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import tritonclient.grpc as grpcclient

from tritonclip_client.main import main
from tritonclip_serve import TritonServer

START_LIMIT_S = 3.0


@pytest.fixture
def own_server(demo_repository: Path, tmp_path: Path) -> Iterator[TritonServer]:
    """A server that a test may damage."""
    ports = {"grpc_port": 0, "metrics_port": 0}
    # With a dead model it does not end by itself.
    with TritonServer(demo_repository, log_path=tmp_path / "server.log", stop_grace_s=1, **ports) as server:
        yield server


def health(server: TritonServer, *options: str) -> int:
    return main(["health", "--address", server.grpc_address, *options])


def kill_model(server: TritonServer, model: str) -> None:
    """End the Python processes of one model as the kernel does when memory runs out."""
    stubs = [
        process
        for process in psutil.Process(server.pid).children(recursive=True)
        if process.status() != psutil.STATUS_ZOMBIE
        and any(f"/{model}/1/model.py" in word for word in process.cmdline())
    ]
    assert stubs
    for stub in stubs:
        stub.kill()


def test_a_server_that_answers_is_healthy(server: TritonServer, capsys) -> None:
    assert health(server) == 0
    line = capsys.readouterr().out
    asked = "embed_image, embed_text, clip, split_text"
    assert re.fullmatch(rf"healthy: demo, fingerprint [0-9a-f]{{12}}, answered by {asked} in \d+ ms\n", line)
    assert health(server, "--entry-point", "embed_image") == 0
    assert "answered by embed_image in" in capsys.readouterr().out


def test_an_entry_point_that_is_not_there_is_unhealthy(server: TritonServer, capsys) -> None:
    assert health(server, "--entry-point", "classify_nothing", "--entry-point", "clip") == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("unhealthy: classify_nothing: NOT_FOUND ")
    assert shown.err.count("\n") == 1


def test_dead_models_are_told_by_entry_point_though_the_server_says_that_it_is_ready(
    own_server: TritonServer, capsys
) -> None:
    # The tower's answers are cached: whoever asks for the same text again sees nothing of its end.
    assert health(own_server) == 0
    kill_model(own_server, "text_encoder")
    capsys.readouterr()
    assert health(own_server) == 1
    assert unhealthy(capsys) == ["embed_text", "clip"]
    client = grpcclient.InferenceServerClient(own_server.grpc_address)
    assert client.is_server_live()
    assert client.is_server_ready()
    client.close()
    assert health(own_server, "--entry-point", "embed_image") == 0
    kill_model(own_server, "split_text")
    capsys.readouterr()
    assert health(own_server) == 1
    assert unhealthy(capsys) == ["embed_text", "clip", "split_text"]


def unhealthy(capsys) -> list[str]:
    """The entry points that the command named, with a line each."""
    shown = capsys.readouterr()
    assert shown.out == ""
    words = [line.split(": ") for line in shown.err.splitlines()]
    assert all(first == "unhealthy" for first, *_ in words)
    return [name for _, name, *_ in words]


def test_a_server_that_is_gone_is_unhealthy(demo_repository: Path, capsys) -> None:
    started = time.monotonic()
    assert main(["health", "--address", "127.0.0.1:9", "--timeout", "5"]) == 1
    assert time.monotonic() - started < 5
    assert "unhealthy: no server is available at 127.0.0.1:9" in capsys.readouterr().err


def test_an_address_that_cannot_be_one_is_a_wrong_question(capsys) -> None:
    assert main(["health", "--address", "localhost"]) == 2
    assert "names no port" in capsys.readouterr().err


def test_a_probe_is_cheap(server: TritonServer) -> None:
    """A probe of a container starts a process every few seconds."""
    program = f"""
import sys
from tritonclip_client.main import main
status = main(["health", "--address", "{server.grpc_address}"])
heavy = [name for name in ("torch", "onnx", "onnxruntime", "transformers", "PIL") if name in sys.modules]
sys.exit(f"{{status}} {{heavy}}" if status or heavy else 0)
"""
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - started < START_LIMIT_S
