"""What the supervisor does to processes, files and sockets of this machine, on real ones."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tritonclip_serve import argv, connections, runs
from tritonclip_serve.environment import raise_file_limit
from tritonclip_serve.log import ServerLog
from tritonclip_serve.process import is_process, spawn, start_time
from tritonclip_serve.repository import root_models, with_dependents
from tritonclip_serve.runs import RunFolder
from tritonclip_serve.supervision.boards import find_board
from tritonclip_serve.supervision.watcher import Death, Watcher

# A child that waits until its standard input ends.
WAIT = "import sys; print(flush=True); sys.stdin.read()"


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def children() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def python(code: str, *words: str, program: str = sys.executable) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [program, "-c", code, *words], executable=sys.executable, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_a_secret_is_taken_out_of_a_childs_arguments(children) -> None:
    child = python(WAIT, "--key=s3cret", "and s3cret again")
    children.append(child)
    assert argv.is_readable(child.pid, "s3cret")
    assert argv.overwrite(child.pid, "s3cret")
    words = Path(f"/proc/{child.pid}/cmdline").read_bytes()
    assert b"s3cret" not in words
    assert b"--key=xxxxxx\0and xxxxxx again\0" in words


def test_a_process_that_has_gone_is_no_failure_of_hiding() -> None:
    assert not argv.overwrite(2**22 + 1, "s3cret")


def test_the_launcher_shows_the_secret_to_nobody(tmp_path: Path) -> None:
    log = ServerLog(tmp_path / "log")
    words = [sys.executable, "-c", "import os,sys; print(sys.argv[1], 'TRITONCLIP_SECRET' in os.environ)", "@secret@"]
    process = spawn(words, {**os.environ, "TRITONCLIP_SECRET": "s3cret"}, log)
    assert process.wait(20) == 0
    assert log.read().split() == ["s3cret", "False"]
    assert "s3cret" not in " ".join(map(str, process.args))


def write_board(run: Path, pid: int, heartbeat: float, busy_since: float = 0.0, limit_s: float = 2.0) -> None:
    path = run / "boards" / f"tower.tower_0_0.{pid}"
    path.write_bytes(struct.pack("<8d", heartbeat, busy_since, limit_s, 0, 0, 0, 0, 0))


def test_a_board_is_read_as_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "boards").mkdir()
    assert find_board(tmp_path, 7) is None
    (tmp_path / "boards" / "tower.tower_0_0.7").write_bytes(b"short")
    assert find_board(tmp_path, 7) is None
    write_board(tmp_path, 7, 12.5, 11.0, 3.0)
    board = find_board(tmp_path, 7)
    assert board is not None
    reading = board.read()
    assert (reading.heartbeat, reading.busy_since, reading.limit_s) == (12.5, 11.0, 3.0)
    board.close()
    board.remove()
    assert find_board(tmp_path, 7) is None


def deaths_within(watcher: Watcher, seconds: float) -> tuple[list[Death], float]:
    begun = time.monotonic()
    while time.monotonic() - begun < seconds:
        if deaths := watcher.wait():
            return deaths, time.monotonic() - begun
    return [], seconds


class FakeStub:
    """A sleeping child under a stub's command line."""

    def __init__(self, children: list[subprocess.Popen[bytes]]) -> None:
        words = ["triton_python_backend_stub", "/repo/tower/1/model.py", "region", "tower_0_0", "DEFAULT"]
        # A shell shows the words as they are, where a script's interpreter would put itself in front.
        self.process = subprocess.Popen(
            [words[0], "-c", "read line", *words[1:]], executable="/bin/sh", stdin=subprocess.PIPE
        )
        children.append(self.process)
        self.pid = self.process.pid


@pytest.fixture
def watched(temporary: Path, children, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, Path, Watcher]]:
    """Process id, run folder and watcher of one such stub, whose server is this process."""
    run = temporary / "run"
    (run / "boards").mkdir(parents=True)
    # Of a stub the model file is the first argument; of the shell that stands in for it, the third.
    monkeypatch.setattr("tritonclip_serve.supervision.stubs._MODEL_FILE", 3)
    child = FakeStub(children)
    write_board(run, child.pid, time.monotonic() + 3600)
    deadline = time.monotonic() + 10
    watcher = Watcher(os.getpid(), run)
    while not watcher.stubs() and time.monotonic() < deadline:
        watcher.look_for_stubs()
    watcher.settle()
    assert [stub.pid for stub in watcher.stubs()] == [child.pid]
    yield child.pid, run, watcher
    watcher.close()


def test_a_death_is_seen_at_once_with_its_cause(watched) -> None:
    pid, run, watcher = watched
    os.kill(pid, signal.SIGKILL)
    deaths, seconds = deaths_within(watcher, 5)
    assert [(death.stub.model, death.cause.kind) for death in deaths] == [("tower", "signal SIGKILL")]
    assert seconds < 1
    assert not list((run / "boards").iterdir())


def test_a_stopped_process_is_ended(watched) -> None:
    pid, _, watcher = watched
    os.kill(pid, signal.SIGSTOP)
    deaths, seconds = deaths_within(watcher, 5)
    assert [death.cause.phrase for death in deaths] == ["stopped by a signal"]
    assert seconds < 2


def test_a_stopped_process_that_loads_is_left_alone(watched) -> None:
    """Triton waits for it, and longer when it is killed."""
    pid, run, _ = watched
    os.kill(pid, signal.SIGSTOP)
    watcher = Watcher(os.getpid(), run)
    for one in watcher._watched.values():
        one.settled = False
    assert deaths_within(watcher, 1)[0] == []
    assert is_process(pid, start_time(pid))
    watcher.settle()
    assert [death.cause.kind for death in deaths_within(watcher, 5)[0]] == ["stopped"]
    watcher.close()


def test_a_silent_heart_is_ended(watched) -> None:
    pid, run, watcher = watched
    write_board(run, pid, time.monotonic(), busy_since=time.monotonic())
    deaths, seconds = deaths_within(watcher, 10)
    assert [death.cause.kind for death in deaths] == ["hung"]
    assert 1.4 < seconds


def test_what_is_retired_may_end(watched) -> None:
    pid, _, watcher = watched
    watcher.retire(["tower"])
    os.kill(pid, signal.SIGKILL)
    assert deaths_within(watcher, 0.5)[0] == []


def test_memory_beyond_the_limit_ends_a_process(watched) -> None:
    pid, run, _ = watched
    watcher = Watcher(os.getpid(), run, memory_limit_mb=0.01)
    deaths, _ = deaths_within(watcher, 5)
    watcher.close()
    assert [death.cause.kind for death in deaths] == ["memory"]
    assert not is_process(pid, start_time(pid))


SERVER = """
import socket, sys
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
kept = [listener.accept()[0] for _ in range(2)]
print("accepted", flush=True)
sys.stdin.read()
"""


def test_connections_of_a_port_are_ended_from_outside(children) -> None:
    process = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    children.append(process)
    assert process.stdout is not None
    port = int(process.stdout.readline())
    callers = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(2)]
    assert process.stdout.readline() == "accepted\n"
    assert connections.cut(process.pid, {port + 1}) == 0
    assert connections.cut(process.pid, {port}) == 2
    for caller in callers:
        assert caller.recv(1) == b""
        caller.close()
    # The port goes on listening.
    socket.create_connection(("127.0.0.1", port), timeout=10).close()


def test_what_a_killed_run_left_is_swept_and_what_lives_is_not(temporary: Path) -> None:
    alive = RunFolder()
    code = (
        "import tempfile, sys; tempfile.tempdir = sys.argv[1]\n"
        "from tritonclip_serve.runs import RunFolder\n"
        "print(RunFolder().path, flush=True)\nsys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(temporary)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    left = Path(child.stdout.readline().strip())
    segment = runs.SHARED_MEMORY / f"{left.name}-segment"
    segment.write_bytes(b"x")
    # Others may have left something too.
    assert not {left.name, alive.path.name} & set(runs.sweep())
    child.kill()
    child.communicate()
    assert left.name in runs.sweep()
    assert not left.exists()
    assert not list(runs.SHARED_MEMORY.glob(f"{left.name}*"))
    assert alive.path.is_dir()
    alive.remove()
    assert not list(runs.SHARED_MEMORY.glob(f"{alive.path.name}*"))


def test_a_server_whose_owner_was_killed_is_ended_by_the_sweep(temporary: Path, children) -> None:
    code = (
        "import subprocess, tempfile, sys; tempfile.tempdir = sys.argv[1]\n"
        "from tritonclip_serve.runs import RunFolder\n"
        "run = RunFolder()\n"
        "words = ['sh', '-c', 'sleep 100; :', run.shared_memory_prefix]\n"
        "server = subprocess.Popen(words, pass_fds=run.inherited(),\n"
        "    start_new_session=True, stdout=subprocess.DEVNULL)\n"
        "run.note_server(server.pid); print(server.pid, flush=True)\nsys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(temporary)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    server = int(child.stdout.readline())
    started = start_time(server)
    child.kill()
    child.communicate()
    assert is_process(server, started)
    assert runs.sweep()
    assert not is_process(server, started)


def test_servers_get_every_file_handle_there_is() -> None:
    code = (
        "import resource as r; from tritonclip_serve.environment import raise_file_limit\n"
        "hard = min(r.getrlimit(r.RLIMIT_NOFILE)[1], 1000); r.setrlimit(r.RLIMIT_NOFILE, (100, hard))\n"
        "raise_file_limit(); print(r.getrlimit(r.RLIMIT_NOFILE) == (hard, hard))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
    raise_file_limit()


def test_calls_come_in_where_no_ensemble_has_a_step(tmp_path: Path) -> None:
    configs = {
        "embed_text": 'name: "embed_text"\nensemble_scheduling { step [ { model_name: "tower" model_version: -1 } ] }',
        "tower": 'name: "tower"\nbackend: "python"',
        "split_text": 'name: "split_text"\nbackend: "python"',
    }
    for name, config in configs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.pbtxt").write_text(config)
    assert root_models(tmp_path) == ("embed_text", "split_text")
    assert with_dependents(tmp_path, ["tower"]) == {"tower", "embed_text"}
    assert with_dependents(tmp_path, ["split_text"]) == {"split_text"}


def test_a_model_without_a_process_is_absent(tmp_path: Path) -> None:
    watcher = Watcher(os.getpid(), tmp_path)
    try:
        (death,) = watcher.absent(["tower"])
    finally:
        watcher.close()
    assert (death.stub.model, death.cause.phrase) == ("tower", "ended before it was watched")
