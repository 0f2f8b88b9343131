"""The pauses between repetitions, and the deadline that bounds them."""

from __future__ import annotations

import itertools

import pytest

from tritonclip_client.errors import DeadlineExceededError, ServerUnavailableError
from tritonclip_client.retry import Deadline, RetryPolicy, call
from tritonclip_client.steps import Pause, Rpc


def failing(retries: int, timeout_s: float) -> list[float]:
    """The pauses of a call that always meets an unavailable server, in seconds."""
    rpc = Rpc("infer", {}, Deadline(timeout_s))
    flow = call(rpc, RetryPolicy(retries))
    pauses = []
    assert next(flow) is rpc
    try:
        while True:
            pause = flow.throw(ServerUnavailableError("down"))
            assert isinstance(pause, Pause)
            pauses.append(pause.seconds)
            assert flow.send(None) is rpc
    except ServerUnavailableError:
        return pauses


def test_pauses_grow_with_jitter_up_to_a_limit():
    bounds = [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]

    for _ in range(50):
        pauses = failing(retries=7, timeout_s=60)
        assert all(bound / 2 <= pause <= bound for pause, bound in zip(pauses, bounds, strict=True))
    assert len(set(pauses)) == len(pauses)


def test_a_million_retries_do_not_overflow():
    delays = itertools.islice(RetryPolicy(retries=10**6).delays(), 5000, 5010)

    assert all(1.0 <= delay <= 2.0 for delay in delays)


def test_no_pause_beyond_the_deadline():
    assert failing(retries=7, timeout_s=0.01) == []


def test_nothing_is_sent_after_the_deadline():
    flow = call(Rpc("infer", {}, Deadline(1e-9)), RetryPolicy(3))

    with pytest.raises(DeadlineExceededError, match="within 1e-09 s"):
        next(flow)


def test_the_answer_is_the_result():
    flow = call(Rpc("infer", {}, Deadline(60)), RetryPolicy(3))
    next(flow)

    with pytest.raises(StopIteration) as stop:
        flow.send("answer")
    assert stop.value.value == "answer"
