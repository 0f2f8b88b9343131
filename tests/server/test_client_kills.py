"""Processes of a real server are killed under load, and the client's callers notice nothing but time."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.grpc as grpcclient

from tritonclip_client import Cause, ClipClient
from tritonclip_serve import TritonServer

PICTURES = sorted((Path(__file__).parents[2] / "export" / "demo" / "pictures").iterdir())[:4]
LONG = ["a sentence of some words. " * 60]
CALLERS = 16
# Of rows that other rows share a batch with.
TOLERANCE = 1e-4

Question = Callable[[ClipClient, int], Any]
QUESTIONS: Sequence[Question] = (
    lambda client, number: client.embed_images(PICTURES),
    # What nobody asked before is in no cache.
    lambda client, number: client.embed_texts([f"text {number}", "a red circle"])[1:],
    lambda client, number: client.similarity(PICTURES[:2], ["a red circle", "a cat"]).logits,
    lambda client, number: client.embed_texts(LONG, long_text="chunk"),
)


def start(repository: Path, log_path: Path, grpc_port: int = 0) -> TritonServer:
    """A server whose models can be loaded again."""
    models = [folder.name for folder in repository.iterdir() if (folder / "config.pbtxt").is_file()]
    flags = ["--model-control-mode=explicit", *(f"--load-model={name}" for name in models)]
    ports = {"grpc_port": grpc_port, "http_port": 0, "metrics_port": 0}
    return TritonServer(repository, log_path=log_path, extra_args=flags, stop_grace_s=2, **ports)


@pytest.fixture(scope="module")
def own_server(demo_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    with start(demo_repository, tmp_path_factory.mktemp("kills") / "server.log") as server:
        yield server


def stubs(server: TritonServer, model: str) -> list[psutil.Process]:
    """The Python processes of one model."""
    children = psutil.Process(server.pid).children(recursive=True)
    return [
        child
        for child in children
        if child.status() != psutil.STATUS_ZOMBIE and any(f"/{model}/1/model.py" in word for word in child.cmdline())
    ]


def revive(server: TritonServer, model: str) -> None:
    """Have the server load one model again."""
    control = grpcclient.InferenceServerClient(server.grpc_address)
    control.unload_model(model, client_timeout=60)
    while control.is_model_ready(model):
        time.sleep(0.02)
    while not control.is_model_ready(model):
        control.load_model(model, client_timeout=60)
    control.close()


@contextmanager
def asking(address: str) -> Iterator[list[Future[int]]]:
    """Callers with the client's defaults, who compare every answer; each future holds how many it had."""
    ended = threading.Event()
    with ClipClient(address) as client:
        known = [question(client, 0) for question in QUESTIONS]

    def ask(caller: int) -> int:
        question, wanted, answers = QUESTIONS[caller % 4], known[caller % 4], 0
        with ClipClient(address) as client:
            while not ended.is_set():
                answers += 1
                np.testing.assert_allclose(question(client, 1000 * caller + answers), wanted, atol=TOLERANCE)
        return answers

    with ThreadPoolExecutor(CALLERS) as pool:
        tasks = [pool.submit(ask, caller) for caller in range(CALLERS)]
        try:
            time.sleep(1)
            yield tasks
        finally:
            time.sleep(1)
            ended.set()


@pytest.mark.parametrize("model", ["preprocess", "image_encoder", "split_text"])
def test_a_killed_model_loses_nothing(own_server: TritonServer, model: str) -> None:
    with asking(own_server.grpc_address) as tasks:
        for stub in stubs(own_server, model):
            stub.kill()
        revive(own_server, model)

    assert min(task.result() for task in tasks) > 0


def test_health_tells_which_entry_points_a_missing_model_concerns(own_server: TritonServer) -> None:
    control = grpcclient.InferenceServerClient(own_server.grpc_address)
    control.unload_model("image_encoder", client_timeout=60)
    with ClipClient(own_server.grpc_address) as client:
        errors = client.health().errors
        assert client.ready(["embed_text", "split_text"])
    control.close()
    revive(own_server, "image_encoder")

    assert {name: error.cause for name, error in errors.items()} == {
        "embed_image": Cause.REVIVING,
        "clip": Cause.REVIVING,
    }


# The last one, for it ends the server that the others share.
def test_a_killed_server_loses_nothing(own_server: TritonServer, tmp_path: Path) -> None:
    port = int(own_server.grpc_address.rpartition(":")[2])
    with ExitStack() as servers, asking(own_server.grpc_address) as tasks:
        os.kill(own_server.pid, signal.SIGKILL)
        own_server.stop()
        servers.enter_context(start(own_server.repository, tmp_path / "second.log", port))

    assert min(task.result() for task in tasks) > 0
