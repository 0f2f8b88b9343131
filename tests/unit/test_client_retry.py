"""When a request is repeated, after which pause, and how long one attempt may take."""

from __future__ import annotations

import pytest

from tritonclip_client.causes import Cause
from tritonclip_client.errors import ClipError, DeadlineExceededError, ServerUnavailableError
from tritonclip_client.patience import REPEATED, Budget, Latencies, Patience, backoff_s
from tritonclip_client.retry import Deadline, call
from tritonclip_client.steps import Pause, Rpc


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("time.monotonic", clock.monotonic)
    return clock


def failing(clock: Clock, error: ClipError, timeout_s: float = 30, patience: Patience | None = None) -> list[float]:
    """The pauses of a call that always fails at once with `error`, in seconds."""
    pauses: list[float] = []

    def run() -> None:
        flow = call(Rpc("infer", {}, Deadline(timeout_s)), patience or Patience())
        assert isinstance(next(flow), Rpc)
        while True:
            pause = flow.throw(error)
            assert isinstance(pause, Pause)
            pauses.append(pause.seconds)
            clock.now += pause.seconds
            flow.send(None)

    with pytest.raises(ClipError) as raised:
        run()
    assert raised.value is error
    return pauses


def unavailable(cause: Cause, retry_after_s: float | None = None) -> ServerUnavailableError:
    return ServerUnavailableError("down", cause, retry_after_s)


def reached(patience: Patience) -> Patience:
    patience.answered(Rpc("infer", {}, Deadline(1)), 0.01)
    return patience


def test_pauses_are_drawn_from_zero_to_a_bound_that_doubles_up_to_a_second():
    for failures, bound in enumerate([0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0]):
        drawn = [backoff_s(failures) for _ in range(300)]
        assert 0.9 * bound < max(drawn) <= bound
        assert min(drawn) < 0.1 * bound
    assert 0 <= backoff_s(10**6) <= 1.0


@pytest.mark.parametrize("cause", [Cause.UNREACHABLE, Cause.REVIVING, Cause.NEIGHBOUR])
def test_what_passes_by_itself_is_repeated_until_the_deadline(clock, cause):
    for _ in range(20):
        start = clock.now
        pauses = failing(clock, unavailable(cause), patience=reached(Patience()))
        # The last pause that fits leaves at most one more.
        assert 29 <= clock.now - start < 30
        assert len(pauses) > 30


def test_a_server_that_never_answered_is_given_up_sooner(clock):
    start = clock.now
    failing(clock, unavailable(Cause.UNREACHABLE))

    assert 8 < clock.now - start <= 9


def test_nothing_is_repeated_without_retry(clock):
    for cause in REPEATED:
        assert failing(clock, unavailable(cause), patience=Patience(frozenset())) == []


def test_what_the_caller_did_wrong_is_not_repeated(clock):
    assert failing(clock, ClipError("wrong")) == []


def test_an_overloaded_server_says_when_to_come_back(clock):
    for _ in range(50):
        pauses = failing(clock, unavailable(Cause.OVERLOADED, 2.0), timeout_s=5)
        assert pauses
        assert all(2.0 <= pause <= 3.0 for pause in pauses)


def test_a_hint_beyond_the_deadline_ends_the_call_at_once(clock):
    assert failing(clock, unavailable(Cause.OVERLOADED, 2.0), timeout_s=1.9) == []


def test_repetitions_of_refused_requests_stay_within_the_budget(clock):
    patience = Patience()
    repeated = sum(len(failing(clock, unavailable(Cause.OVERLOADED, 0.001), patience=patience)) for _ in range(200))

    # The reserve, a tenth of 200, and what the time that passed is worth.
    assert 10 + 18 <= repeated <= 10 + 20 + 1


def test_a_spent_budget_does_not_hold_back_what_costs_no_work(clock):
    patience = reached(Patience())
    for _ in range(30):
        failing(clock, unavailable(Cause.OVERLOADED, 0.001), patience=patience)

    assert len(failing(clock, unavailable(Cause.REVIVING), patience=patience)) > 30


def test_a_budget_fills_with_requests_and_time_up_to_its_reserve(clock):
    budget = Budget(reserve=2, ratio=0.1, per_second=0.5)
    assert [budget.take() for _ in range(3)] == [True, True, False]
    for _ in range(11):
        budget.earn()
    assert [budget.take(), budget.take()] == [True, False]
    clock.now += 1000
    assert [budget.take() for _ in range(3)] == [True, True, False]
    budget.owe()
    clock.now += 2
    assert not budget.has_token()


def test_latencies_are_known_after_enough_of_a_kind():
    latencies = Latencies()
    for number in range(20):
        assert latencies.longest("a") is None
        latencies.add("a", number / 100)
    assert latencies.longest("a") == 0.19
    assert latencies.longest("b") is None


def taught(seconds: float, size: int = 8) -> Patience:
    """Patience that has seen many answers of one model."""
    patience = Patience()
    for _ in range(30):
        patience.answered(Rpc("infer", {"model_name": "m"}, Deadline(1), size), seconds)
    return patience


@pytest.mark.parametrize(
    ("seconds", "stalls", "limit_s"),
    [(0.01, 0, 2.0), (0.5, 0, 5.0), (0.01, 1, 4.0), (0.01, 4, 30.0), (10.0, 0, 30.0)],
)
def test_an_attempt_may_take_ten_times_what_was_seen(clock, seconds, stalls, limit_s):
    rpc = Rpc("infer", {"model_name": "m"}, Deadline(30), 8)

    assert taught(seconds).attempt_s(rpc, stalls) == pytest.approx(limit_s)


def test_an_attempt_of_an_unknown_kind_leaves_a_third_of_the_time(clock):
    assert Patience().attempt_s(Rpc("infer", {}, Deadline(30)), 0) == pytest.approx(20)
    assert taught(0.01).attempt_s(Rpc("infer", {"model_name": "m"}, Deadline(30), 16), 0) == pytest.approx(20)
    assert Patience().attempt_s(Rpc("infer", {}, Deadline(1.5)), 0) == pytest.approx(1.5)


def test_a_stalled_attempt_is_repeated_and_paid_for(clock):
    patience = taught(0.01)
    flow = call(Rpc("infer", {"model_name": "m"}, Deadline(30), 8), patience)
    limits = [next(flow).limit_s]
    for _ in range(2):
        clock.now += limits[-1]
        pause = flow.throw(DeadlineExceededError("late"))
        clock.now += pause.seconds
        limits.append(flow.send(None).limit_s)

    assert limits == [2.0, 4.0, 8.0]
    # Spent: now every attempt has all its time.
    for _ in range(10):
        patience._budget.owe()
    assert patience.attempt_s(Rpc("infer", {"model_name": "m"}, Deadline(30), 8), 0) == pytest.approx(30)


def test_the_deadline_of_the_call_is_no_stall(clock):
    flow = call(Rpc("infer", {}, Deadline(1)), Patience())
    next(flow)
    clock.now += 1
    with pytest.raises(DeadlineExceededError, match="late"):
        flow.throw(DeadlineExceededError("late"))


def test_nothing_is_sent_after_the_deadline(clock):
    flow = call(Rpc("infer", {}, Deadline(1e-9)), Patience())
    clock.now += 1

    with pytest.raises(DeadlineExceededError, match="within 1e-09 s"):
        next(flow)


def test_the_answer_is_the_result():
    flow = call(Rpc("infer", {}, Deadline(60)), Patience())
    next(flow)

    with pytest.raises(StopIteration) as stop:
        flow.send("answer")
    assert stop.value.value == "answer"


def test_the_server_is_told_how_long_the_call_still_waits(clock):
    deadline = Deadline(10)
    clock.now += 4

    assert Rpc("infer", {}, deadline, limit_s=2.0).timing() == {"client_timeout": 2.0, "timeout": 6_000_000}
    assert Rpc("get_model_config", {}, deadline).timing() == {"client_timeout": 6.0}
    clock.now += 6
    assert Rpc("infer", {}, deadline).timing()["timeout"] == 1
