"""The raw samples of a run, and what is made of them: distribution, timeline, files, one result of many processes."""

from __future__ import annotations

import csv
import gzip
import random
from pathlib import Path

import numpy as np
import pytest

import tritonclip_bench.load.recorder as recording
from tritonclip_bench.errors import BenchError, WrongAnswerError
from tritonclip_bench.load.clienttimes import SAMPLED_OF, ClientTimes
from tritonclip_bench.load.latency import BINS_PER_DECADE, distribution
from tritonclip_bench.load.loadrun import _unused
from tritonclip_bench.load.recorder import Recorder
from tritonclip_bench.load.samples import write_samples
from tritonclip_bench.load.watch import Watch
from tritonclip_bench.load.window import Window


class Clock:
    """Stands where it is put."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(recording.time, "perf_counter", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_the_distribution_counts_every_time_between_its_edges() -> None:
    times = [random.Random(1).lognormvariate(3, 1) for _ in range(5000)]
    found = distribution(times)
    edges, counts = found["edges_ms"], found["counts"]
    assert len(edges) == len(counts) + 1
    assert counts == np.histogram(times, edges)[0].tolist()
    assert sum(counts) == len(times)
    assert counts[0] > 0
    assert counts[-1] > 0
    assert edges[1] / edges[0] == pytest.approx(10 ** (1 / BINS_PER_DECADE))


def test_distributions_of_two_results_have_the_same_edges() -> None:
    first, second = (set(distribution(times)["edges_ms"]) for times in ([3.0, 90.0], [20.0, 700.0]))
    assert len(first & second) > 10
    assert distribution([]) is None


def test_the_timeline_tells_when_requests_were_due_and_when_they_ended(clock: Clock) -> None:
    recorder = Recorder()
    recorder.begin()
    # Model, when it was due and how long it took, of which the window sees the end.
    for due_s, took_ms, failure in [(0.1, 100, None), (0.9, 300, None), (1.0, 10, None), (1.5, 200, ValueError("no"))]:
        recorder.add("embed_text", took_ms, 1, failure, due_s=1000 + due_s)
    # Due in the warm-up, answered in the window.
    recorder.add("embed_text", 2000, 1, None, due_s=999.0)
    clock.now = 1003.0
    recorder.end([("embed_text", 500.0)])
    assert recorder.results()["timeline"] == {
        "second": [0, 1, 2],
        "due": [2, 2, 1],
        "answered": [1, 3, 0],
        "failed": [0, 1, 0],
        "p99_ms": [100.0, 2000.0, None],
    }


def test_a_part_of_a_second_is_left_out(clock: Clock) -> None:
    recorder = Recorder()
    recorder.begin()
    for window_s, seconds in [(2.4, 2), (2.99, 3), (0.3, 1)]:
        recorder.begin()
        clock.now += window_s
        recorder.end()
        assert recorder.results()["timeline"]["second"] == list(range(seconds))


def test_what_comes_after_the_end_of_a_cut_window_counts_in_nothing(clock: Clock) -> None:
    recorder = Recorder()
    recorder.begin()
    recorder.add("embed_text", 100, 1, None, due_s=1000.5)
    recorder.add("embed_text", 1, 1, ValueError("UNAVAILABLE"), due_s=1002.5)
    clock.now = 1008.0
    recorder.end(until_s=2.0)
    results = recorder.results()
    assert results["window_s"] == 2.0
    assert (results["total"]["requests"], results["total"]["failures"]) == (1, 0)
    assert results["total"]["requests_per_s"] == 0.5


def test_what_was_due_after_a_cut_does_not_raise_the_offered_rate(clock: Clock) -> None:
    window = Window()
    window.open()
    for second in range(8):
        clock.now = 1000.0 + second
        window.in_flight.arrive(window.in_flight.depart("embed_text", clock.now))
        window.recorder.add("embed_text", 100, 1, None, due_s=clock.now)
    clock.now = 1008.0
    window.close(until_s=2.0)
    results = window.results()
    assert results["window_s"] == 2.0
    assert results["total"]["requests_per_s"] == 1.0
    assert results["open_loop"]["offered_per_s"] == 1.0


def test_no_address_stands_in_a_reason() -> None:
    recorder = Recorder()
    recorder.begin()
    recorder.add("embed_text", 1.0, 1, WrongAnswerError("UNAVAILABLE: ipv4:127.0.0.1:8001: Connection refused"))
    recorder.add("embed_text", 1.0, 1, WrongAnswerError("UNAVAILABLE: ipv6:%5B::1%5D:8001: [::1]:8001 refused"))
    recorder.end()
    assert list(recorder.results()["total"]["failure_reasons"]) == [
        "UNAVAILABLE: the server: Connection refused",
        "UNAVAILABLE: the server: the server refused",
    ]


def test_reasons_without_end_become_one() -> None:
    recorder = Recorder()
    recorder.begin()
    for number in range(recording.MOST_REASONS + 500):
        recorder.add("embed_text", 1.0, 1, ValueError(f"text {number}"))
    recorder.end()
    total = recorder.results()["total"]
    assert total["failures"] == recording.MOST_REASONS + 500
    assert total["failure_reasons"][recording.OTHER_REASONS] > 400


def test_the_samples_of_a_file_are_those_of_the_result(tmp_path: Path, clock: Clock) -> None:
    recorder = Recorder()
    recorder.begin()
    recorder.add("embed_text", 20.0, 4, None, due_s=1000.5)
    recorder.add("embed_image", 5.25, 2, None, due_s=1000.25)
    recorder.add("embed_text", 1.0, 4, ValueError('INVALID_ARGUMENT: "a, b"'), due_s=1000.75)
    clock.now = 1001.0
    recorder.end([("embed_text", 100.0)])
    for name in ("samples.csv.gz", "samples.csv"):
        write_samples(tmp_path / name, recorder.samples())
    content = (tmp_path / "samples.csv").read_bytes()
    assert gzip.decompress((tmp_path / "samples.csv.gz").read_bytes()) == content
    rows = list(csv.reader(content.decode().splitlines()))
    assert rows == [
        ["due_s", "model", "items", "latency_ms", "outcome"],
        ["0.250000", "embed_image", "2", "5.2500", "ok"],
        ["0.500000", "embed_text", "4", "20.0000", "ok"],
        ["0.750000", "embed_text", "4", "1.0000", 'INVALID_ARGUMENT: "a, b"'],
        ["0.900000", "embed_text", "0", "100.0000", "unanswered"],
    ]
    with pytest.raises(BenchError, match="give a file in a folder that exists"):
        write_samples(tmp_path / "missing" / "samples.csv", {})


def test_later_runs_write_samples_of_their_own(tmp_path: Path) -> None:
    names = [_unused(tmp_path / "samples.csv.gz").name for _ in range(3)]
    assert names == ["samples.csv.gz", "samples-2.csv.gz", "samples-3.csv.gz"]


def test_a_window_of_two_processes_is_that_of_one(clock: Clock) -> None:
    alone, master, workers = Window(), Window(), [Window(), Window()]
    for window in (alone, master, *workers):
        window.open()
    random_ = random.Random(3)
    # What one counts as its second reason may be the other's first.
    failures = [None, None, None, ValueError("busy"), ValueError("bad")]
    for worker, reason in zip(workers, ("busy", "bad"), strict=True):
        for window in (alone, worker):
            window.recorder.add("clip", 1.0, 1, ValueError(reason))
    for number in range(300):
        clock.now = 1000 + number / 100
        worker = workers[number % 2]
        model, failure = random_.choice(["embed_text", "clip"]), random_.choice(failures)
        for window in (alone, worker):
            window.recorder.add(model, random_.random() * 100, 3, failure, due_s=clock.now - 0.5)
            window.times.count(0.001, 0.002, FakeMessage())
            window.in_flight.offered += 1
            window.in_flight.lags_ms.append(number / 10)
        if number % 70 == 0:
            master.absorb(str(number % 2), worker.report(), last=False)
    random_.seed(3)
    clock.now = 1003.0
    for name, worker in enumerate(workers):
        worker.close()
        master.absorb(str(name), worker.report(), last=True)
    alone.close()
    master.close()
    told, expected = master.results(), alone.results()
    for key in ("timeline", "by_model"):
        assert shape(told[key]) == shape(expected[key])
    assert told["total"]["requests"] == expected["total"]["requests"]
    assert told["total"]["failure_reasons"] == expected["total"]["failure_reasons"]
    assert told["open_loop"] == expected["open_loop"]
    assert told["window_s"] == pytest.approx(3.0)
    assert told["client"]["prepare_ms"] == pytest.approx(1.0)
    assert told["client"]["check_ms"] == pytest.approx(2.0)


def shape(value: object) -> object:
    """`value` without its times, which are not drawn twice."""
    if isinstance(value, dict):
        left_out = ("latency_ms", "distribution", "p99_ms", "answered", "failed", "second", "due")
        return {key: shape(part) for key, part in value.items() if key not in left_out}
    return value


class FakeMessage:
    """A request of ten bytes."""

    def SerializeToString(self) -> bytes:  # noqa: N802
        return b"x" * 10


def test_a_worker_that_reports_after_the_end_changes_nothing() -> None:
    master, worker = Window(), Window()
    master.open()
    worker.open()
    worker.recorder.add("clip", 1.0, 1, None)
    master.close()
    master.absorb("late", worker.report(), last=True)
    assert master.results()["total"]["requests"] == 0


def test_some_messages_are_serialised_once_more() -> None:
    times = ClientTimes()
    for _ in range(2 * SAMPLED_OF):
        times.count(0.002, 0.001, FakeMessage())
    told = times.summary()
    assert times.sampled == 2
    assert (told["prepare_ms"], told["check_ms"]) == (pytest.approx(2.0), pytest.approx(1.0))
    assert told["request_bytes"] == 10
    times.clear()
    assert times.summary() == {}


def test_the_server_is_gone_where_every_process_says_so() -> None:
    master, workers = Window(), [Window(), Window()]
    for window in (master, *workers):
        window.open()
    for name, worker in enumerate(workers):
        worker.times.count(0, 0, FakeMessage())
        worker.sent = {"images": {}}
        if name == 0:
            worker.watch.refused()
        master.absorb(str(name), worker.report(), last=False)
    assert master.failing_since_s() is None
    workers[1].watch.refused()
    master.absorb("1", workers[1].report(), last=False)
    assert master.failing_since_s() == pytest.approx(workers[1].watch.failing_since_s, abs=0.1)


def test_the_first_refusal_counts() -> None:
    watch = Watch()
    watch.refused()
    since_s = watch.failing_since_s
    watch.refused()
    assert watch.failing_since_s == since_s
