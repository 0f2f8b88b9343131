"""How a supervised server ends: drained, at once, or because it cannot be kept."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tritonclient.utils import InferenceServerException

from supervised import Served, wait_until
from supervised_models import write_supervised_repository

Serve = Callable[..., Served]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    repository, started = write_supervised_repository(tmp_path / "repository"), []

    def start(*options: str) -> Served:
        started.append(Served(repository, tmp_path, *options))
        return started[-1]

    yield start
    for served in started:
        served.kill()


def asked(served: Served, text: str) -> tuple[threading.Thread, list[object]]:
    """A call in a thread, and what became of it."""
    outcome: list[object] = []

    def call() -> None:
        try:
            outcome.append(served.embed(text))
        except InferenceServerException as error:
            outcome.append(error)

    caller = threading.Thread(target=call)
    caller.start()
    time.sleep(1)
    return caller, outcome


def test_what_has_begun_is_answered_and_nothing_new_is(serve: Serve) -> None:
    served = serve("--drain-seconds", "30")
    caller, outcome = asked(served, "sleep 4")
    served.process.send_signal(signal.SIGTERM)
    served.line("stopping: what has begun is answered for up to 30 s")
    assert wait_until(lambda: served.page("/health/ready")[0] == 503, 5)
    assert wait_until(lambda: not served.embeds("embed_image"), 10)
    caller.join(60)
    assert outcome == [len("sleep 4")]
    assert served.process.wait(60) == 0
    served.line("Z server tritonserver: drained in ")


def test_what_takes_longer_than_the_drain_is_lost(serve: Serve) -> None:
    served = serve("--drain-seconds", "1")
    caller, outcome = asked(served, "sleep 100")
    assert served.stop() == 0
    caller.join(60)
    assert [type(one) for one in outcome] == [InferenceServerException]
    served.line("calls that still run are lost")


def test_a_second_signal_ends_it_at_once(serve: Serve) -> None:
    served = serve("--drain-seconds", "100")
    caller, _ = asked(served, "sleep 100")
    served.process.send_signal(signal.SIGTERM)
    served.line("a second signal ends it")
    time.sleep(0.5)
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(30) == 0
    caller.join(60)


def test_it_gives_up_beyond_the_limit(serve: Serve) -> None:
    served = serve("--restart-limit", "1")
    os.kill(served.server(), signal.SIGKILL)
    served.line("Z server tritonserver: signal SIGKILL; started again")
    os.kill(served.server(), signal.SIGKILL)
    assert served.process.wait(60) == 3
    served.line(r"error: tritonserver ended by itself \(signal SIGKILL, more than 1 times within 60 s\)")


def test_a_log_that_cannot_be_written_harms_nobody(serve: Serve) -> None:
    """A disk that is full."""
    served = serve("--log-file", "/dev/full")
    os.kill(served.stubs()["tower"], signal.SIGKILL)
    served.line("Z model tower: .*loaded again")
    assert served.embeds()
    assert b"xxxxxxxx" in Path(f"/proc/{served.server()}/cmdline").read_bytes()


def test_the_next_start_removes_what_a_killed_one_left(serve: Serve, tmp_path: Path) -> None:
    served = serve()
    server = served.server()
    (left,) = tmp_path.glob("tritonclip_*")
    os.kill(served.process.pid, signal.SIGKILL)
    os.kill(server, signal.SIGKILL)
    served.process.wait()
    assert left.is_dir()
    assert list(Path("/dev/shm").glob(f"{left.name}*"))
    again = serve()
    again.line(f"removed what .* left behind: .*{left.name}")
    assert not left.exists()
    assert not list(Path("/dev/shm").glob(f"{left.name}*"))
