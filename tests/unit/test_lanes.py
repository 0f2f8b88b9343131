"""Continuous batching in the encoder models: who runs, with whom, and when."""

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "model_repository" / "image_encoder" / "1"))
import clip_lanes
from clip_board import BUSY_SINCE, Board
from clip_fair import ENOUGH_MEASURED, Limits, OverloadError
from clip_jobs import Job
from clip_lanes import Lanes

TIMEOUT_S = 10.0


class Graph:
    """Adds one; records the rows of every run, and holds runs until it is told to let them go."""

    def __init__(self) -> None:
        self.narrow_runs: list[int] = []
        self.wide_runs: list[int] = []
        self.gate = threading.Event()
        self.started = threading.Semaphore(0)
        self.gate.set()

    def narrow(self, batch: np.ndarray) -> np.ndarray:
        self.narrow_runs.append(len(batch))
        return self._run(batch)

    def wide(self, batch: np.ndarray) -> np.ndarray:
        self.wide_runs.append(len(batch))
        return self._run(batch)

    def _run(self, batch: np.ndarray) -> np.ndarray:
        self.started.release()
        assert self.gate.wait(TIMEOUT_S)
        if (batch < 0).any():
            raise ValueError("negative")
        return batch + 1

    def wait_for_runs(self, count: int) -> None:
        for _ in range(count):
            assert self.started.acquire(timeout=TIMEOUT_S)


class Answers:
    """What came back, by request."""

    def __init__(self) -> None:
        self.results: dict[int, np.ndarray | Exception] = {}
        self._done = threading.Condition()

    def submit(self, lanes: Lanes, key: int, rows: np.ndarray, caller: str = "", timeout_s: float = 0.0) -> None:
        lanes.submit(Job(rows, lambda result: self._note(key, result), caller=caller, timeout_s=timeout_s))

    def _note(self, key: int, result: np.ndarray | Exception) -> None:
        with self._done:
            assert key not in self.results, "answered twice"
            self.results[key] = result
            self._done.notify_all()

    def wait(self, count: int) -> dict[int, np.ndarray | Exception]:
        with self._done:
            assert self._done.wait_for(lambda: len(self.results) >= count, TIMEOUT_S), self.results
        return self.results


@pytest.fixture
def graph() -> Iterator[Graph]:
    graph = Graph()
    yield graph
    graph.gate.set()


def rows(count: int, width: int = 2, start: float = 0.0) -> np.ndarray:
    return np.arange(start, start + count * width, dtype=np.float32).reshape(count, width)


@pytest.mark.parametrize("lanes", [1, 2, 3])
@pytest.mark.parametrize("most", [1, 4])
def test_every_request_gets_its_own_rows_in_order(graph: Graph, lanes: int, most: int) -> None:
    engine, answers = Lanes(graph.narrow, graph.wide, lanes, most), Answers()
    sent = {key: rows(1 + key % 9, 2 + key % 2, start=100.0 * key) for key in range(60)}
    for key, batch in sent.items():
        answers.submit(engine, key, batch)
    results = answers.wait(len(sent))
    assert all(np.array_equal(results[key], batch + 1) for key, batch in sent.items())
    engine.close()
    assert max(graph.narrow_runs + graph.wide_runs) <= max(most, lanes - 1)


def test_a_lone_row_runs_on_all_cores(graph: Graph) -> None:
    engine, answers = Lanes(graph.narrow, graph.wide, 2, 4), Answers()
    answers.submit(engine, 0, rows(1))
    answers.wait(1)
    assert (graph.wide_runs, graph.narrow_runs) == ([1], [])


def test_a_batch_that_finds_all_lanes_free_is_spread_over_them(graph: Graph) -> None:
    graph.gate.clear()
    engine, answers = Lanes(graph.narrow, graph.wide, 3, 4), Answers()
    answers.submit(engine, 0, rows(7))
    graph.wait_for_runs(3)
    assert sorted(graph.narrow_runs) == [2, 2, 3]


def test_one_bad_row_fails_its_own_request_only(graph: Graph) -> None:
    graph.gate.clear()
    engine, answers = Lanes(graph.narrow, graph.wide, 1, 8), Answers()
    answers.submit(engine, 0, rows(1))
    graph.wait_for_runs(1)
    for key, batch in enumerate([rows(2), -rows(2, start=1), rows(3)], start=1):
        answers.submit(engine, key, batch)
    graph.gate.set()
    results = answers.wait(4)
    assert [key for key, result in results.items() if isinstance(result, ValueError)] == [2]
    assert np.array_equal(results[3], rows(3) + 1)
    # Together, and only then apart.
    assert graph.narrow_runs == [1, 7, 2, 2, 3]


def test_a_request_that_fails_in_two_slices_is_answered_once(graph: Graph) -> None:
    engine, answers = Lanes(graph.narrow, graph.wide, 2, 2), Answers()
    answers.submit(engine, 0, -rows(8, start=1))
    answers.submit(engine, 1, rows(2))
    results = answers.wait(2)
    engine.close()
    assert isinstance(results[0], ValueError)
    assert np.array_equal(results[1], rows(2) + 1)


def test_an_answer_that_cannot_be_sent_costs_nobody_else_theirs(
    graph: Graph, capsys: pytest.CaptureFixture[str]
) -> None:
    engine, answers = Lanes(graph.narrow, graph.wide, 2, 4), Answers()

    def unsendable(_: object) -> None:
        raise RuntimeError("no shared memory left")

    for _ in range(5):
        engine.submit(Job(rows(1), unsendable))
        engine.submit(Job(rows(6), unsendable))
    for key in range(5):
        answers.submit(engine, key, rows(3))
    answers.wait(5)
    engine.close()
    assert "no shared memory left" in capsys.readouterr().err


def test_computing_is_work_of_the_process_and_waiting_for_the_server_to_take_an_answer_is_not() -> None:
    board, computing, answering = Board("lanes", "one"), [], []

    def run(batch: np.ndarray) -> np.ndarray:
        computing.append(board._cells[BUSY_SINCE])
        return batch

    engine = Lanes(run, run, 1, 8, board=board)
    engine.submit(Job(rows(1), lambda _: answering.append(board._cells[BUSY_SINCE])))
    engine.close()
    assert computing[0] > 0
    assert answering == [0.0]


def test_a_full_queue_turns_away_at_once_and_never_blocks(graph: Graph) -> None:
    graph.gate.clear()
    engine, answers = Lanes(graph.narrow, graph.wide, 1, 2, Limits(entries=2)), Answers()
    answers.submit(engine, 0, rows(2))
    graph.wait_for_runs(1)
    for key in (1, 2, 3):
        answers.submit(engine, key, rows(2))
    assert list(answers.wait(1)) == [3]
    assert isinstance(answers.results[3], OverloadError)
    graph.gate.set()
    assert np.array_equal(answers.wait(4)[2], rows(2) + 1)
    assert engine.turned_away()["tritonclip_admission_refused_total"] == 1
    engine.close()


def test_a_single_row_does_not_wait_for_a_batch_that_came_before(graph: Graph) -> None:
    graph.gate.clear()
    order: list[str] = []
    engine = Lanes(graph.narrow, graph.wide, 1, 4)
    engine.submit(Job(rows(4), lambda _: order.append("first")))
    graph.wait_for_runs(1)
    engine.submit(Job(rows(64), lambda _: order.append("batch")))
    engine.submit(Job(rows(1), lambda _: order.append("single")))
    graph.gate.set()
    engine.close()
    assert order == ["first", "single", "batch"]


def test_what_waited_too_long_is_answered_and_not_run(graph: Graph) -> None:
    graph.gate.clear()
    engine, answers = Lanes(graph.narrow, graph.wide, 1, 4), Answers()
    answers.submit(engine, 0, rows(4))
    graph.wait_for_runs(1)
    answers.submit(engine, 1, rows(4), timeout_s=0.1)
    answers.submit(engine, 2, rows(4))
    time.sleep(0.15)
    graph.gate.set()
    results = answers.wait(3)
    engine.close()
    assert isinstance(results[1], OverloadError)
    assert "waited its share" in str(results[1])
    assert np.array_equal(results[2], rows(4) + 1)
    assert sum(graph.narrow_runs) == 8
    assert engine.turned_away() == {"tritonclip_admission_refused_total": 0, "tritonclip_admission_expired_total": 1}
    assert engine.sums().requests == 2


def test_what_cannot_be_in_time_is_refused_when_it_comes(graph: Graph) -> None:
    def slow(batch: np.ndarray) -> np.ndarray:
        time.sleep(0.005 * len(batch))
        return batch

    engine, answers = Lanes(slow, slow, 1, 4), Answers()
    count = ENOUGH_MEASURED + 4
    for key in range(count):
        answers.submit(engine, key, rows(4))
    answers.wait(count)
    for key in range(count, count + 40):
        answers.submit(engine, key, rows(4), timeout_s=0.4)
    refused = [key for key, result in answers.wait(count + 40).items() if isinstance(result, OverloadError)]
    engine.close()
    assert 20 <= len(refused) < 40
    assert engine.turned_away()["tritonclip_admission_refused_total"] >= 20


class OneByOne(Graph):
    """Lets one run go on at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.turns = threading.Semaphore(0)

    def _run(self, batch: np.ndarray) -> np.ndarray:
        self.started.release()
        assert self.turns.acquire(timeout=TIMEOUT_S)
        return batch + 1


@pytest.fixture
def half_free() -> Iterator[tuple[OneByOne, Lanes, Answers]]:
    """Two lanes took four rows each; one of them is done, the other still runs."""
    graph, answers = OneByOne(), Answers()
    lanes = Lanes(graph.narrow, graph.wide, 2, 4)
    answers.submit(lanes, 0, rows(8))
    graph.wait_for_runs(2)
    graph.turns.release()
    while lanes._busy == 2:
        time.sleep(0.001)
    yield graph, lanes, answers
    for _ in range(9):
        graph.turns.release()
    lanes.close()


def test_a_free_lane_waits_for_the_senders_it_just_answered(
    half_free: tuple[OneByOne, Lanes, Answers], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clip_lanes, "PATIENCE", 1e9)
    graph, lanes, answers = half_free
    for key in (1, 2, 3):
        answers.submit(lanes, key, rows(1))
    assert not graph.started.acquire(timeout=0.2)
    answers.submit(lanes, 4, rows(1))
    graph.wait_for_runs(1)
    assert graph.narrow_runs == [4, 4, 4]


def test_a_free_lane_does_not_wait_longer_than_its_patience(
    half_free: tuple[OneByOne, Lanes, Answers], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clip_lanes, "PATIENCE", 0.0)
    graph, lanes, answers = half_free
    answers.submit(lanes, 1, rows(1))
    graph.wait_for_runs(1)
    assert graph.narrow_runs == [4, 4, 1]


def test_closing_answers_what_waits(graph: Graph) -> None:
    graph.gate.clear()
    engine, answers = Lanes(graph.narrow, graph.wide, 2, 4), Answers()
    for key in range(3):
        answers.submit(engine, key, rows(2))
    graph.gate.set()
    engine.close()
    assert len(answers.results) == 3
