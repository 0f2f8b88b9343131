"""What the supervisor decides, without a server: pauses, limits, verdicts, lines and counters."""

from __future__ import annotations

import re
import signal
import time

import pytest

from tritonclip_serve.supervision.boards import Reading
from tritonclip_serve.supervision.events import Cause, Events
from tritonclip_serve.supervision.judgement import HEARTBEAT_LIMIT_S, Clock, exit_cause, hang
from tritonclip_serve.supervision.policies import Backoff, RestartLimit
from tritonclip_serve.supervision.stubs import Stub, parse
from tritonclip_serve.supervision.supervisor import Pulse

NOW = 1000.0
ALIVE = Reading(heartbeat=NOW - 0.1, busy_since=0.0, limit_s=2.0)


def test_pauses_grow_to_a_limit_and_begin_anew_after_a_calm_time() -> None:
    backoff, now, pauses = Backoff(calm_s=3), 0.0, []
    for _ in range(10):
        pauses.append(backoff.pause(now))
        now += pauses[-1] + 0.1
    assert pauses[:5] == [0, 0.25, 0.5, 1, 2]
    assert pauses[-1] == 30
    assert backoff.pause(now + 4) == 0


def test_deaths_count_within_the_window_alone() -> None:
    limit = RestartLimit(2, window_s=60)
    assert [limit.exceeded(second) for second in (0, 10, 20)] == [False, False, True]
    assert not RestartLimit(2, window_s=60).exceeded(0)
    spread = RestartLimit(2, window_s=60)
    assert not any(spread.exceeded(31.0 * number) for number in range(20))
    assert RestartLimit(0).exceeded(0)


@pytest.mark.parametrize(
    ("state", "reading", "cores", "phrase"),
    [
        ("S", ALIVE, 0, None),
        ("R", None, 0, None),
        ("T", None, 0, "stopped by a signal"),
        # A debugger looks at it.
        ("t", ALIVE, 0, None),
        ("S", Reading(NOW - 1.7, 0, 2), 0, "hung for 1.7 s"),
        # It has not begun to tell.
        ("S", Reading(0, 0, 0), 0, None),
        ("S", Reading(NOW, NOW - 1.9, 2), 0, None),
        ("S", Reading(NOW, NOW - 2.5, 2), 0, "hung in one piece of work for 2.5 s, limit 2.0 s"),
        # It computes: its first large batch, perhaps.
        ("S", Reading(NOW, NOW - 2.5, 2), 1.0, None),
        ("R", Reading(NOW, NOW - 21, 2), 1.0, "hung in one piece of work for 21.0 s, limit 20.0 s"),
    ],
)
def test_who_hangs(state: str, reading: Reading | None, cores: float, phrase: str | None) -> None:
    cause = hang(state, reading, NOW, cores=cores)
    assert (cause and cause.phrase) == phrase


def test_who_had_no_core_itself_does_not_judge_the_hearts_of_others() -> None:
    clock = Clock(0.0)
    assert clock.tick(0.2)
    assert not clock.tick(2.2)
    assert not clock.tick(2.4)
    assert [clock.tick(2.4 + 0.2 * number) for number in range(1, 10)][-1]
    silent = Reading(NOW - 10, 0, 2)
    assert hang("S", silent, NOW, judge_hearts=False) is None
    assert hang("T", silent, NOW, judge_hearts=False) is not None
    assert HEARTBEAT_LIMIT_S + 0.2 < 2


def test_how_a_process_ended() -> None:
    assert exit_cause(int(signal.SIGKILL)).kind == "signal SIGKILL"
    assert exit_cause(3 << 8).phrase == "exit status 3"


def test_an_event_is_a_line_with_time_cause_and_duration_and_a_count() -> None:
    lines: list[str] = []
    events = Events(lines.append)
    killed = Cause("signal SIGKILL", "signal SIGKILL in image_encoder_0_0")
    events.restarted("model", "image_encoder", killed, 0.416, "loaded again")
    events.restarted("model", "image_encoder", killed, 0.5, "loaded again")
    events.failed("model", "tokenizer", Cause("hung", "hung for 1.7 s"), "no\nspace left", 0.25)
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z model image_encoder: signal SIGKILL in image_encoder_0_0; "
        r"loaded again, back after 0\.42 s",
        lines[0],
    )
    assert lines[2].endswith("hung for 1.7 s; it did not come back (no space left), next try in 0.2 s")
    told = events.prometheus()
    assert 'tritonclip_restarts_total{cause="signal SIGKILL",name="image_encoder",what="model"} 2\n' in told
    assert 'tritonclip_restart_failures_total{name="tokenizer",what="model"} 1\n' in told
    assert told.count("# TYPE ") == 2


def test_labels_are_escaped() -> None:
    events = Events(lambda line: None)
    events.restarted("model", 'a"b\\c', Cause("x", "x"), 0, "loaded again")
    assert r'name="a\"b\\c"' in events.prometheus()


def test_a_stub_is_told_by_its_command_line() -> None:
    words = ["/b/triton_python_backend_stub", "/repo/image_encoder/1/model.py", "region", "1", "1", "2", "/b/python"]
    line = b"\0".join(word.encode() for word in [*words, "336", "image_encoder_0_0", "DEFAULT"]) + b"\0"
    assert parse(7, line) == Stub(7, "image_encoder", "image_encoder_0_0")
    assert parse(7, b"/usr/bin/python3\0-c\0pass\0now\0") is None
    assert parse(7, b"") is None


def test_a_server_that_computes_may_be_silent_for_longer() -> None:
    def missed(computes: bool) -> int:
        pulse = Pulse(lambda: False)
        try:
            for number in range(30):
                if pulse.step(1000.0 * number, computes) is not None:
                    return number
                wait_for_answer(pulse)
        finally:
            pulse.close()
        raise AssertionError("it was never given up")

    assert missed(computes=False) == 2
    assert missed(computes=True) == 20


def wait_for_answer(pulse: Pulse) -> None:
    while pulse._asked is not None and not pulse._asked.done():
        time.sleep(0.001)
