"""The models' own counters on a real server's metrics port, and a model that is loaded again while it is asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import tritonclient.grpc as grpc

from tritonclip_bench.errors import BenchError
from tritonclip_bench.server.metrics import by_label, default_url, fetch
from tritonclip_client import ClipClient, ClipError
from tritonclip_client.long_texts import TruncationWarning
from tritonclip_serve import TritonServer

RELOADS = 3
TEXTS = 5
NAMES = ("preprocess_images", "encoder_items", "tokenizer_texts", "tokenizer_truncated")


def counted(server: TritonServer, name: str) -> dict[str, float]:
    host, _, port = server.metrics_address.rpartition(":")
    for _ in range(100):
        # The last port to open, and the server is ready without it.
        with suppress(BenchError):
            return by_label(fetch(default_url(host, int(port))), name, "model")
        time.sleep(0.1)
    raise AssertionError(f"no metrics at {server.metrics_address}")


def told_since(before: dict[str, dict[str, float]], server: TritonServer) -> dict[str, dict[str, float]]:
    now = {name: counted(server, f"tritonclip_{name}") for name in NAMES}
    return {name: {model: now[name][model] - was for model, was in before[name].items()} for name in NAMES}


def test_every_text_and_image_is_counted(server: TritonServer, demo_repository: Path) -> None:
    image = (demo_repository / "preprocess" / "warmup" / "image").read_bytes()[4:]
    # What the server was asked before is told by then.
    time.sleep(1)
    before = {name: counted(server, f"tritonclip_{name}") for name in NAMES}
    with ClipClient(server.grpc_address) as client:
        with pytest.warns(TruncationWarning):
            client.embed_texts([f"counted {number}" for number in range(TEXTS)] + ["word " * 500])
        client.embed_images([image] * 2)
    wanted = {
        "preprocess_images": {"preprocess": 2},
        "encoder_items": {"image_encoder": 2, "text_encoder": TEXTS + 1},
    }
    wanted |= {"tokenizer_texts": {"tokenizer": TEXTS + 1}, "tokenizer_truncated": {"tokenizer": 1}}
    deadline = time.monotonic() + 10
    while (found := told_since(before, server)) != wanted and time.monotonic() < deadline:
        time.sleep(0.05)
    assert found == wanted


def test_a_model_is_loaded_again_under_load_and_its_counters_go_on(demo_repository: Path, tmp_path: Path) -> None:
    ports = {"grpc_port": 0, "metrics_port": 0}
    with TritonServer(demo_repository, **ports, log_path=tmp_path / "log") as server:
        control = grpc.InferenceServerClient(server.grpc_address)
        with asking(server.grpc_address):
            for _ in range(RELOADS):
                # A counter that the old model deletes when it ends, and the new one shares, crashes the server here.
                control.unload_model("text_encoder", headers=server.control_headers, client_timeout=30)
                control.load_model("text_encoder", headers=server.control_headers, client_timeout=30)
                time.sleep(0.5)
        control.close()
        server._check_alive()
        assert counted(server, "tritonclip_encoder_requests")["text_encoder"] > RELOADS


@contextmanager
def asking(address: str) -> Iterator[None]:
    """Texts are sent one after another, whether they are answered or not."""
    ended = threading.Event()

    def ask() -> None:
        with ClipClient(address, retry=False, timeout_s=5) as client:
            for number in range(10**6):
                if ended.is_set():
                    return
                try:
                    client.embed_texts([f"text {number}"])
                except ClipError:
                    time.sleep(0.01)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
