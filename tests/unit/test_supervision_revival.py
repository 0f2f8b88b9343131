"""How models and servers that died are brought back, with stand-ins that come up when they are told to."""

from __future__ import annotations

import re
import time
from collections.abc import Collection
from types import SimpleNamespace

import pytest

from tritonclip_serve.errors import ServerDiedError
from tritonclip_serve.supervision.events import Cause, Events
from tritonclip_serve.supervision.revival import Revival
from tritonclip_serve.supervision.stubs import Stub
from tritonclip_serve.supervision.supervisor import Limits, Supervisor
from tritonclip_serve.supervision.watcher import Death

KILLED = Cause("signal SIGKILL", "signal SIGKILL")


class FakeControl:
    """Loads models once `failures` attempts have failed."""

    def __init__(self) -> None:
        self.failures = 0

    def reload(self, models: Collection[str]) -> dict[str, str]:
        self.failures -= 1
        return dict.fromkeys(models, "no weights") if self.failures >= 0 else {}

    def prove(self) -> None:
        pass


def fall(revival: Revival, control: FakeControl, lines: list[str], failures: int) -> list[float]:
    """Kill the model `tower`, fail to load it so often, and load it; returns the pauses in seconds."""
    control.failures, said = failures, len(lines)
    now = time.monotonic()
    revival.add([Death(Stub(1, "tower", "tower_0_0"), KILLED, now)])
    deadline = now + 10
    while revival.models() and time.monotonic() < deadline:
        # As if every pause had passed.
        revival.step(time.monotonic() + 3600)
        time.sleep(0.005)
    assert "loaded again, 3 connections ended" in lines[-1]
    return [float(found[1]) for line in lines[said:] if (found := re.search("next try in ([0-9.]+) s", line))]


def test_pauses_between_attempts_grow_and_begin_anew_when_the_model_loads() -> None:
    control, lines = FakeControl(), list[str]()
    revival = Revival(control, Events(lines.append), lambda: 3, lambda models: None)  # type: ignore[arg-type]
    try:
        first = fall(revival, control, lines, failures=4)
        assert first == [0.0, 0.2, 0.5, 1.0]
        assert fall(revival, control, lines, failures=4) == first
    finally:
        revival.close()


class FakeServer:
    """Comes up once `failures` starts have failed."""

    def __init__(self) -> None:
        self.failures = 0
        self.reports = SimpleNamespace()
        self.log_path = "LOG"

    def end_process(self) -> None:
        pass

    def start(self) -> None:
        self.failures -= 1

    def wait_ready(self) -> None:
        if self.failures >= 0:
            raise ServerDiedError("no port")

    def last_words(self) -> str:
        return "no port"


def test_a_server_is_started_at_once_however_often_it_died_and_pauses_grow_where_that_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("tritonclip_serve.supervision.supervisor.time.sleep", pauses.append)
    server, lines = FakeServer(), list[str]()
    supervisor = Supervisor(server, Limits(restarts=11), Events(lines.append))  # type: ignore[arg-type]
    for _ in range(6):
        supervisor._restart(KILLED, time.monotonic())
    assert pauses == [0.0] * 6
    server.failures = 4
    supervisor._restart(KILLED, time.monotonic())
    assert pauses[6:] == [0.0, 0.25, 0.5, 1.0, 2.0]
    assert "started again" in lines[-1]
    with pytest.raises(ServerDiedError, match="more than 11 times within 60 s"):
        supervisor._restart(KILLED, time.monotonic())
