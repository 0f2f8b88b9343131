"""An open loop keeps its pace whatever the server does, and a stall cannot hide in it."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import tritonclip_bench.traffic.arrivals as arrivals
from kserve_server import Call, Server, serving
from tritonclip_bench.errors import WrongAnswerError
from tritonclip_bench.load.recorder import Recorder
from tritonclip_bench.results.repeats import SEED_STEP
from tritonclip_bench.results.report import warnings
from tritonclip_bench.traffic.arrivals import Arrivals, InFlight

STALL_S = 1.5


def test_gaps_are_those_of_a_poisson_process() -> None:
    due = Arrivals(50, seed=3, begin_s=100.0)
    times = [due.next_s() for _ in range(20_000)]
    gaps = [later - earlier for earlier, later in itertools.pairwise([100.0, *times])]
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(1 / 50, rel=0.03)
    # An exponential distribution's deviation is its mean.
    assert (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5 == pytest.approx(mean, rel=0.05)


def test_two_users_do_not_send_together() -> None:
    first, second = (Arrivals(10, seed, 0.0) for seed in (1, 2))
    assert first.next_s() != second.next_s()


def test_no_user_of_any_process_has_the_moments_of_another_run() -> None:
    seeds = [
        run * SEED_STEP + process * arrivals.SEEDS_OF_A_PROCESS + user
        for run, process, user in itertools.product(range(20), range(8), range(4))
    ]
    assert len(set(seeds)) == len(seeds)


def test_what_waits_is_known_with_its_age(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 10.5, 12.0])
    monkeypatch.setattr(arrivals.time, "perf_counter", lambda: next(clock))
    flights = InFlight()
    answered = flights.depart("embed_text", 10.0)
    flights.depart("embed_image", 10.25)
    flights.arrive(answered)
    assert flights.waiting() == [("embed_image", 1750.0)]
    assert flights.lags_ms == [0.0, 250.0]
    assert flights.summary(2.0) == {"offered_per_s": 1.0, "lag_ms_p99": 250.0, "lag_ms_max": 250.0}


def test_requests_without_answer_count_in_the_percentiles() -> None:
    recorder = Recorder()
    recorder.begin()
    recorder.add("embed_image", 10.0, 1, None)
    recorder.end([("embed_image", 5000.0)])
    total = recorder.results()["total"]
    assert (total["requests"], total["unanswered"], total["latency_ms"]["max"]) == (1, 1, 5000.0)


def test_requests_whose_time_was_up_count_too() -> None:
    recorder = Recorder()
    recorder.begin()
    recorder.add("embed_image", 10.0, 1, None)
    recorder.add("embed_image", 2000.0, 1, WrongAnswerError("DEADLINE_EXCEEDED"), gave_up=True)
    recorder.add("embed_image", 1.0, 1, WrongAnswerError("INVALID_ARGUMENT"))
    recorder.end()
    total = recorder.results()["total"]
    assert (total["requests"], total["failures"], total["unanswered"]) == (1, 2, 0)
    assert total["latency_ms"]["max"] == 2000.0
    assert total["latency_ms"]["mean"] == 1005.0


def results(*, answered: float, lag_ms: float) -> dict:
    total = {"failures": 0, "requests": 100, "requests_per_s": answered}
    offered = {"offered_per_s": 100.0, "lag_ms_p99": lag_ms, "lag_ms_max": lag_ms}
    return {"client_cpu_cores": 0.1, "total": total, "open_loop": offered, "window_s": 1.0}


@pytest.mark.parametrize(
    ("answered", "lag_ms", "said"),
    [
        (99.0, 1.0, None),
        (80.0, 1.0, "80.0 were answered: the server did not keep up"),
        (99.0, 90.0, "late, 1 of 100 by"),
    ],
)
def test_a_reader_is_warned(answered: float, lag_ms: float, said: str | None) -> None:
    found = warnings(results(answered=answered, lag_ms=lag_ms))
    assert found == [] if said is None else said in found[0]


def bench(address: str, result: Path, *options: str, status: int = 0) -> dict:
    line = [sys.executable, "-m", "tritonclip_client.main", "bench", "--address", address, "--scenario", "text"]
    line += ["--warmup", "1s", "--duration", "5s", "--json", str(result), *options]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return {**json.loads(result.read_text())["results"], "printed": done.stdout}


class Stalling:
    """Answers at once, but for one stall of every request that comes within it, from the two hundredth on."""

    def __init__(self) -> None:
        self._lock, self._calls, self._until = threading.Lock(), 0, 0.0

    def __call__(self, call: Call) -> None:
        with self._lock:
            self._calls += 1
            if self._calls == 200:
                self._until = time.monotonic() + STALL_S
            left = self._until - time.monotonic()
        time.sleep(max(0.0, left))


@pytest.mark.parametrize(("options", "sees_it"), [(["--users", "1"], False), (["--users", "4", "--rate", "80"], True)])
def test_a_stall_shows_where_requests_do_not_wait_for_it(options: list[str], sees_it: bool, tmp_path: Path) -> None:
    with serving(Server(text_limit=64, on_infer=Stalling()), workers=200) as server:
        measured = bench(server.address, tmp_path / "result.json", *options)
    latency = measured["total"]["latency_ms"]
    assert latency["max"] >= STALL_S * 900
    # One request of a thousand waited in the closed loop, and a quarter of all that were due in the open one.
    assert (latency["p99"] >= STALL_S * 500) == sees_it
    if sees_it:
        assert measured["open_loop"]["offered_per_s"] == pytest.approx(80, rel=0.2)
        assert "80 requests/s offered over 4 connections" in measured["printed"]
        assert "requests/s were due" in measured["printed"]


def test_a_dead_server_is_not_fast(tmp_path: Path) -> None:
    def stop(call: Call) -> None:
        if call.model == "embed_text" and len(call.items[0]) > 0 and next(count) > 150:
            ended.wait(60)

    ended, count = threading.Event(), itertools.count()
    with serving(Server(text_limit=64, on_infer=stop), workers=400) as server:
        try:
            options = ("--users", "2", "--rate", "60", "--deadline", "1s")
            measured = bench(server.address, tmp_path / "result.json", *options, status=1)
        finally:
            ended.set()
    # Of the last second's the ages, of all others their deadline.
    assert measured["total"]["latency_ms"]["p95"] >= 900
    assert "DEADLINE_EXCEEDED" in measured["printed"]
    assert "did not keep up" in measured["printed"]
