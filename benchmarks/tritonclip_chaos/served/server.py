"""The server under test: `tritonclip serve`, started as a user starts it, and what it leaves behind."""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import psutil

from tritonclip_chaos.errors import ServerFault
from tritonclip_chaos.served import tree
from tritonclip_chaos.served.sandbox import SHM_MB, Sandbox
from tritonclip_serve import die_with_parent, runs

_LAUNCHER = Path(die_with_parent.__file__)
# ONNX Runtime keeps one such file a machine, whoever uses it.
_OF_ONNX_RUNTIME = ".ses"
START_S, END_S = 120.0, 40.0
_POLL_S = 0.05
_LOG_NAME = "tritonserver.log"
_ADDRESS = re.compile(r"gRPC ([^\s,;]+)")
_METRICS = re.compile(r"metrics (?:http://)?([^\s,;/]+)")


class OwnServer:
    """A `tritonclip serve` of our own that may be damaged. A context manager: entering waits until it is ready.

    Args:
        repository: what it serves.
        options: further options of `tritonclip serve`.
        shm_mb: size of its /dev/shm, where it can have one of its own.

    Raises:
        ServerFault: it does not get ready, or does not end.
    """

    def __init__(self, repository: Path, *options: str, shm_mb: int = SHM_MB) -> None:
        self.repository = repository
        self.address = self.metrics = ""
        self.mark = secrets.token_hex(8)
        self.leftovers: list[str] = []
        self.exit_status: int | None = None
        self._options = options
        self._shm_mb = shm_mb
        self._stack = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self._is_asked = False

    def __enter__(self) -> OwnServer:
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-")))
        for name in ("tmp", "log"):
            (self._folder / name).mkdir()
        self.sandbox = self._stack.enter_context(Sandbox(self._folder / "log", self._shm_mb))
        self._segments = set() if self.sandbox.shared_memory else _segments(Path("/dev/shm"))
        try:
            self._start()
        except BaseException:
            self.stop()
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stop()
        finally:
            self._stack.close()

    @property
    def pid(self) -> int:
        """Of `tritonclip serve`."""
        assert self._process is not None
        return self._process.pid

    @property
    def output(self) -> str:
        """What it printed so far."""
        return (self._folder / "output").read_text(errors="replace")

    @property
    def log(self) -> str:
        """What tritonserver logged so far."""
        try:
            return ((self.sandbox.logs or self._folder / "log") / _LOG_NAME).read_text(errors="replace")
        except OSError as error:
            return f"(no log: {error.strerror})"

    def processes(self) -> list[psutil.Process]:
        """All its living processes."""
        return tree.descendants(self.pid)

    def stubs(self) -> list[tree.Stub]:
        """The processes of its Python models."""
        return tree.stubs(self.pid)

    def runs(self) -> bool:
        """Whether `tritonclip serve` itself still runs."""
        return self._process is not None and self._process.poll() is None

    def terminate(self) -> None:
        """Ask it to end, as a container's runtime does: once, because a second signal ends it without draining."""
        if self._process is not None and not self._is_asked:
            self._is_asked = True
            self._process.send_signal(signal.SIGTERM)

    def stop(self) -> list[str]:
        """End it in order and look for what it left; returns that, one line each. Nothing, the second time."""
        self.terminate()
        process, self._process = self._process, None
        if process is None:
            return []
        try:
            self.exit_status = process.wait(timeout=END_S)
        except subprocess.TimeoutExpired:
            self.leftovers.append(f"tritonclip serve, still there {END_S:g} s after SIGTERM")
            process.kill()
            process.wait()
        self.leftovers += self._left()
        return self.leftovers

    def _start(self) -> None:
        words = ["serve", str(self.repository), "--log-file", str(self._folder / "log" / _LOG_NAME)]
        for port in ("grpc", "metrics"):
            words += [f"--{port}-port", "0"]
        serve = [sys.executable, "-m", "tritonclip_client.main", *words, *self._options]
        # It must not outlive us, whatever ends us.
        launcher = [sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid())]
        command = [*launcher, *self.sandbox.wrap(serve)]
        environment = {**os.environ, tree.MARK: self.mark, "TMPDIR": str(self._folder / "tmp")}
        with (self._folder / "output").open("wb") as output:
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # A Ctrl-C in the terminal is ours to pass on.
                start_new_session=True,
            )
        self._wait_ready()

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            line = next((line for line in self.output.splitlines() if line.startswith("ready in ")), "")
            address, metrics = _ADDRESS.search(line), _METRICS.search(line)
            if address:
                self.address, self.metrics = address[1], metrics[1] if metrics else ""
                return
            if not self.runs():
                break
            time.sleep(_POLL_S)
        raise ServerFault(f"`tritonclip serve {self.repository}` did not get ready; it said:\n{self.output[-2000:]}")

    def _left(self) -> list[str]:
        """Processes, shared memory, files and sockets that outlive it."""
        deadline = time.monotonic() + 2.0
        while (alive := tree.marked(self.mark)) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        found = [f"process {' '.join(_command(process))[:100]}" for process in alive]
        for process in alive:
            process.kill()
        segments = _segments(self.sandbox.shared_memory or Path("/dev/shm")) - self._segments
        found += [f"shared memory {name}" for name in sorted(segments) if name.startswith(runs.PREFIX)]
        files = (path.name for path in sorted((self._folder / "tmp").iterdir()) if path.name != _OF_ONNX_RUNTIME)
        found += [f"in the temporary folder: {name}" for name in files]
        ports = {int(one.rpartition(":")[2]) for one in (self.address, self.metrics) if one}
        found += [f"a socket that listens on port {port}" for port in sorted(ports & _listening())]
        return found


def _segments(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _listening() -> set[int]:
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    # State 0A is LISTEN.
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A"}


def _command(process: psutil.Process) -> list[str]:
    try:
        return [str(word) for word in process.cmdline()]
    except psutil.Error:
        return ["(gone meanwhile)"]
