"""The door of a tower: what it does, refuses and drops, and how soon."""

import queue
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "model_repository" / "image_encoder" / "1"))
from clip_board import Board
from clip_door import Door, Limits, OverloadError, Ticket
from clip_fair import ENOUGH_MEASURED

TIMEOUT_S = 10.0
PIECE_S = 0.01


class Work:
    """Pieces that take a while, and what was done and answered."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self.done: list[str] = []
        self.answers: queue.Queue[tuple[str, Exception | None, float]] = queue.Queue()

    def ticket(self, name: str, pieces: int = 1, timeout_s: float = 0.0, caller: str = "", fails: int = -1) -> Ticket:
        begun = time.monotonic()

        def work(piece: int) -> None:
            time.sleep(PIECE_S)
            if piece == fails:
                raise ValueError(f"piece {piece}")
            self.done.append(name)

        def answer(error: Exception | None) -> None:
            self.answers.put((name, error, time.monotonic() - begun))

        return Ticket([1.0] * pieces, work, answer, caller=caller, timeout_s=timeout_s, size=10)

    def submit(self, name: str, **options: object) -> None:
        self.door.submit(self.ticket(name, **options))  # type: ignore[arg-type]

    def wait(self, count: int) -> list[tuple[str, Exception | None, float]]:
        return [self.answers.get(timeout=TIMEOUT_S) for _ in range(count)]


@pytest.fixture
def door() -> Iterator[Door]:
    door = Door(2, Board("door", "test"), Limits(seconds=10.0, entries=500, size=10**5))
    yield door
    door.close()


@pytest.fixture
def measured(door: Door) -> Work:
    """A door that knows what its work takes."""
    work = Work(door)
    for number in range(ENOUGH_MEASURED + 2):
        work.submit(f"warm {number}")
    work.wait(ENOUGH_MEASURED + 2)
    work.done.clear()
    return work


def test_the_pieces_of_a_request_are_done_side_by_side_and_it_is_answered_once(door: Door) -> None:
    work, together = Work(door), threading.Barrier(2, timeout=TIMEOUT_S)
    answered: queue.Queue[Exception | None] = queue.Queue()
    door.submit(Ticket([1.0] * 2, lambda _: together.wait() and None, answered.put))
    assert answered.get(timeout=TIMEOUT_S) is None
    work.submit("five", pieces=5)
    assert [name for name, error, _ in work.wait(1) if error is None] == ["five"]
    assert work.done == ["five"] * 5


def test_a_piece_that_fails_fails_its_request_and_the_rest_of_it_is_not_done(measured: Work) -> None:
    measured.submit("bad", pieces=40, fails=0)
    measured.submit("good")
    answers = {name: error for name, error, _ in measured.wait(2)}
    assert isinstance(answers["bad"], ValueError)
    assert answers["good"] is None
    assert measured.done.count("bad") <= 3


def test_what_cannot_be_in_time_is_refused_at_once(measured: Work) -> None:
    for number in range(100):
        measured.submit(f"{number}")
    begun = time.perf_counter()
    for _ in range(100):
        measured.submit("hasty", timeout_s=0.2)
    assert (time.perf_counter() - begun) / 100 < 0.002
    refused = [(error, took) for name, error, took in measured.wait(200) if name == "hasty"]
    assert all(isinstance(error, OverloadError) for error, _ in refused)
    assert sorted(took for _, took in refused)[50] < 0.01
    assert "hasty" not in measured.done
    assert measured.door.counts()["tritonclip_admission_refused_total"] == 100


def test_what_expires_while_it_waits_is_told_and_not_done(door: Door) -> None:
    work = Work(door)  # nothing is measured yet, so nothing is refused
    for number in range(14):
        work.submit(f"{number}", pieces=4)
    for _ in range(20):
        work.submit("impatient", pieces=4, timeout_s=0.1)
    late = [error for name, error, _ in work.wait(34) if name == "impatient" and error is not None]
    assert len(late) >= 5
    assert all(isinstance(error, OverloadError) and "waited its share" in str(error) for error in late)
    assert door.counts()["tritonclip_admission_expired_total"] == len(late)
    assert work.done.count("impatient") <= 4 * (20 - len(late)) + 8


def test_one_with_ten_times_the_requests_gets_no_larger_share(measured: Work) -> None:
    for number in range(300):
        measured.submit("many", caller="many")
        if number % 10 == 0:
            measured.submit("few", caller="few")
    answers = measured.wait(330)
    assert all(error is None for name, error, _ in answers if name == "few")
    # When the last of the few is done, no more of the others are, but for those that were there before.
    last = len(measured.done) - measured.done[::-1].index("few")
    assert measured.done[:last].count("many") <= 30 + 30


def test_work_may_be_done_in_the_caller_s_thread_while_nobody_waits(door: Door) -> None:
    threads: list[int] = []
    answers: queue.Queue[Exception | None] = queue.Queue()
    door.submit(Ticket([1.0], lambda _: threads.append(threading.get_ident()), answers.put), here=True)
    assert threads == [threading.get_ident()]
    assert answers.get_nowait() is None


def test_a_full_door_counts_whom_it_turns_away() -> None:
    door = Door(1, Board("door", "test"), Limits(seconds=10.0, entries=5))
    work = Work(door)
    for number in range(20):
        work.submit(f"{number}")
    errors = [error for _, error, _ in work.wait(20) if error is not None]
    door.close()
    assert 10 <= len(errors) <= 15
    assert all("requests of" in str(error) for error in errors)
    assert door.counts()["tritonclip_admission_refused_total"] == len(errors)


def test_an_answer_that_cannot_be_sent_costs_nobody_else_theirs(door: Door, capsys: pytest.CaptureFixture[str]) -> None:
    def unsendable(_: object) -> None:
        raise RuntimeError("no shared memory left")

    work = Work(door)
    for _ in range(4):
        door.submit(Ticket([1.0], lambda _: None, unsendable))
    work.submit("good")
    assert work.wait(1)[0][1] is None
    assert "no shared memory left" in capsys.readouterr().err


def test_closing_does_what_waits() -> None:
    door = Door(2, Board("door", "test"))
    work = Work(door)
    for number in range(9):
        work.submit(f"{number}")
    door.close()
    assert len(work.done) == 9


def test_a_request_of_several_pieces_is_done_by_the_workers(door: Door) -> None:
    threads: list[int] = []
    answers: queue.Queue[Exception | None] = queue.Queue()
    door.submit(Ticket([1.0, 1.0], lambda _: threads.append(threading.get_ident()), answers.put), here=True)
    assert answers.get(timeout=TIMEOUT_S) is None
    assert len(threads) == 2
    assert threading.get_ident() not in threads


def test_who_comes_while_another_s_turn_runs_waits(door: Door) -> None:
    answers: queue.Queue[Exception | None] = queue.Queue()
    threads: list[int] = []
    begun, go_on = threading.Event(), threading.Event()

    def slow(_: int) -> None:
        begun.set()
        go_on.wait(TIMEOUT_S)

    door.submit(Ticket([1.0], slow, answers.put))
    assert begun.wait(TIMEOUT_S)
    door.submit(Ticket([1.0], lambda _: threads.append(threading.get_ident()), answers.put), here=True)
    assert answers.get(timeout=TIMEOUT_S) is None
    assert threading.get_ident() not in threads
    go_on.set()
    assert answers.get(timeout=TIMEOUT_S) is None
