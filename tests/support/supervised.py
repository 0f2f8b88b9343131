"""`tritonclip serve` as a process of its own, and what tests ask of it and do to it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

LONG_S = 60.0


class Served:
    """A `tritonclip serve` that is ready.

    Args:
        repository: what it serves.
        folder: for its log and its temporary files.
        options: of the command.

    Attributes:
        lines: what it has written to stderr so far.
    """

    def __init__(self, repository: Path, folder: Path, *options: str) -> None:
        self.lines: list[str] = []
        self.log = folder / "server.log"
        words = [sys.executable, "-m", "tritonclip_client.main", "serve", str(repository)]
        words += ["--grpc-port", "0", "--metrics-port", "0", *options]
        words += [] if "--log-file" in options else ["--log-file", str(self.log)]
        self.process = subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(folder)},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self.process.stdout is not None
        self.ready = self.process.stdout.readline()
        assert self.ready, self.lines
        found = re.search(r"gRPC (\S+:\d+).*metrics (\S+:\d+)", self.ready)
        assert found is not None, self.ready
        self.grpc, self.metrics = found[1], found[2]

    def server(self) -> int:
        """Process id of tritonserver."""
        (child,) = psutil.Process(self.process.pid).children()
        return child.pid

    def stubs(self) -> dict[str, int]:
        """Process ids of the Python models, the newest by model."""
        found = {}
        for child in sorted(psutil.Process(self.server()).children(), key=lambda one: one.create_time()):
            words = child.cmdline() if child.status() != psutil.STATUS_ZOMBIE else []
            if len(words) > 2:
                found[Path(words[1]).parts[-3]] = child.pid
        return found

    def embed(self, text: str = "four", model: str = "embed_text", timeout_s: float = LONG_S) -> float:
        """The first number of an embedding: the text's length."""
        client = triton.InferenceServerClient(self.grpc)
        try:
            tensor = triton.InferInput("image" if model == "embed_image" else "text", [1, 1], "BYTES")
            tensor.set_data_from_numpy(np.array([[text.encode()]], dtype=object))
            return float(client.infer(model, [tensor], client_timeout=timeout_s).as_numpy("embedding")[0, 0])
        finally:
            client.close()

    def embeds(self, model: str = "embed_text") -> bool:
        """Whether it embeds now."""
        try:
            return self.embed(model=model, timeout_s=5) == 4
        except InferenceServerException:
            return False

    def page(self, path: str) -> tuple[int, str]:
        """Status and body of a page of the metrics port."""
        try:
            with urllib.request.urlopen(f"http://{self.metrics}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def line(self, pattern: str, seconds: float = LONG_S) -> str:
        """The first line of stderr that matches, as soon as it is there; it is not found again."""
        found: list[str] = []

        def look() -> bool:
            found[:] = [line for line in self.lines if re.search(pattern, line)]
            return bool(found)

        assert wait_until(look, seconds), f"no line {pattern!r} in {self.lines}"
        self.lines.remove(found[0])
        return found[0]

    def stop(self) -> int:
        """Ask it to end; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(LONG_S)

    def kill(self) -> None:
        """End it and what it started, however it is."""
        own = [psutil.Process(self.process.pid)] if self.process.poll() is None else []
        processes = [*own, *(child for one in own for child in one.children(recursive=True))]
        for one in processes:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        self.process.wait()
        self._reader.join(LONG_S)
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip())


def wait_until(condition: Callable[[], bool], seconds: float = LONG_S) -> bool:
    """Whether it became true in time."""
    deadline = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return met
