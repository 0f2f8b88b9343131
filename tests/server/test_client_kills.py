"""Processes of a supervised server are killed under load, and the client's callers notice nothing but time."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tritonclip_client import ClipClient

IMAGES = sorted((Path(__file__).parents[2] / "export" / "demo" / "images").glob("*.jpg"))[:4]
LONG = ["a sentence of some words. " * 60]
CALLERS = 16
# A busy machine may start the server slowly: what is tested is that nothing is lost, not how soon it is back.
TIMEOUT_S = 120.0
# Of rows that other rows share a batch with.
TOLERANCE = 1e-4

Question = Callable[[ClipClient, int], Any]
QUESTIONS: Sequence[Question] = (
    lambda client, number: client.embed_images(IMAGES),
    # What nobody asked before is in no cache.
    lambda client, number: client.embed_texts([f"text {number}", "a red circle"])[1:],
    lambda client, number: client.similarity(IMAGES[:2], ["a red circle", "a cat"]).logits,
    lambda client, number: client.embed_texts(LONG, long_text="chunk"),
)


class Served:
    """`tritonclip serve`, and the processes below it."""

    def __init__(self, repository: Path, log_path: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        flags = ["--grpc-port", str(port), "--metrics-port", "0", "--log-file", str(log_path), "--restart-limit", "50"]
        line = [sys.executable, "-m", "tritonclip_client.main", "serve", str(repository), *flags]
        self.process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)

    def find(self, name: str) -> list[psutil.Process]:
        """tritonserver, or the Python processes of a model."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            # Those that have ended since.
            with suppress(psutil.Error):
                words = [child.name()] if name == "tritonserver" else child.cmdline()
                if any(word == name or f"/{name}/1/model.py" in word for word in words):
                    found.append(child)
        return found

    def wait_ready(self) -> None:
        """Wait until every entry point answers."""
        deadline = time.monotonic() + TIMEOUT_S
        with ClipClient(self.address) as client:
            while not client.ready(timeout_s=5):
                assert self.process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)


@pytest.fixture(scope="module")
def served(demo_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(demo_repository, tmp_path_factory.mktemp("kills") / "server.log")
    try:
        served.wait_ready()
        yield served
    finally:
        served.process.terminate()
        served.process.wait(60)


@contextmanager
def asking(address: str) -> Iterator[list[Future[int]]]:
    """Callers who compare every answer until the block ends; each future holds how many they had."""
    ended = threading.Event()
    with ClipClient(address, timeout_s=TIMEOUT_S) as client:
        known = [question(client, 0) for question in QUESTIONS]

    def ask(caller: int) -> int:
        question, wanted, answers = QUESTIONS[caller % 4], known[caller % 4], 0
        with ClipClient(address, timeout_s=TIMEOUT_S) as client:
            while not ended.is_set():
                answers += 1
                np.testing.assert_allclose(question(client, 1000 * caller + answers), wanted, atol=TOLERANCE)
        return answers

    with ThreadPoolExecutor(CALLERS) as pool:
        try:
            yield [pool.submit(ask, caller) for caller in range(CALLERS)]
        finally:
            ended.set()


@pytest.mark.parametrize("name", ["preprocess", "image_encoder", "split_text", "tritonserver"])
def test_a_kill_under_load_loses_nothing(served: Served, name: str) -> None:
    with asking(served.address) as callers:
        time.sleep(1)
        victims = served.find(name)
        assert victims
        for victim in victims:
            victim.kill()
        psutil.wait_procs(victims, timeout=10)
        served.wait_ready()

    assert min(caller.result() for caller in callers) > 0
