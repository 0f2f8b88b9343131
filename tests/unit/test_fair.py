"""The fair queue inside the models: whose turn it is, who waited too long, who cannot be in time."""

import sys
import time
from collections import Counter
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "model_repository" / "image_encoder" / "1"))
from clip_fair import ENOUGH_MEASURED, Entry, FairQueue, Limits, OverloadError, Pace

LIMITS = Limits(seconds=10.0, entries=1000, size=10**6)


def entry(caller: str = "", pieces: int = 1, cost: float = 1.0, timeout_s: float = 0.0, age_s: float = 0.0) -> Entry:
    return Entry([cost] * pieces, caller=caller, timeout_s=timeout_s, size=10, came=time.monotonic() - age_s)


def served(queue: FairQueue[Entry], count: int) -> list[str]:
    return [queue.take()[0].caller for _ in range(count)]


def test_ten_times_the_requests_are_not_ten_times_the_share() -> None:
    queue: FairQueue[Entry] = FairQueue(LIMITS)
    for _ in range(200):
        queue.push(entry("many"))
    for _ in range(20):
        queue.push(entry("few"))
    shares = Counter(served(queue, 40))
    assert shares["few"] == 20
    assert shares["many"] == 20


def test_a_share_is_of_work_and_not_of_requests() -> None:
    queue: FairQueue[Entry] = FairQueue(LIMITS)
    for _ in range(40):
        queue.push(entry("large", cost=4.0))
        queue.push(entry("small"))
    shares = Counter(served(queue, 25))
    assert shares["small"] == pytest.approx(4 * shares["large"], abs=4)


def test_callers_without_a_name_are_each_their_own_and_small_overtakes_large() -> None:
    queue: FairQueue[Entry] = FairQueue(LIMITS)
    large, small = entry(cost=12.0), entry()
    queue.push(large)
    queue.push(small)
    assert [queue.take()[0] for _ in range(2)] == [small, large]


def test_a_large_request_does_not_hold_up_those_that_come_later() -> None:
    queue: FairQueue[Entry] = FairQueue(LIMITS)
    large = entry(pieces=64)
    queue.push(large)
    for _ in range(5):
        queue.take()
    late = entry()
    queue.push(late)
    assert late in [queue.take()[0] for _ in range(2)]
    assert [queue.take() for _ in range(58)][-1] == (large, 63)
    assert (len(queue), queue.pieces, queue.waiting, queue.size) == (0, 0, 0.0, 0)


def test_a_steady_stream_of_small_ones_does_not_starve_a_large_one() -> None:
    queue: FairQueue[Entry] = FairQueue(LIMITS)
    large = entry(cost=10.0)
    queue.push(large)
    taken = []
    queue.push(entry())
    for _ in range(30):
        queue.push(entry())
        taken.append(queue.take()[0])
    assert large in taken


def test_what_waited_half_of_its_timeout_is_dropped_and_what_began_has_all_of_it() -> None:
    queue: FairQueue[Entry] = FairQueue(LIMITS)
    fresh, late = entry(timeout_s=2.0, age_s=0.5), entry(timeout_s=2.0, age_s=1.1)
    begun, ended = entry(pieces=2, timeout_s=2.0, age_s=1.1), entry(pieces=2, timeout_s=2.0, age_s=2.1)
    for one in (begun, ended):
        queue.push(one)
    for _ in range(2):
        queue.take()
    queue.push(fresh)
    queue.push(late)
    assert set(queue.overdue(time.monotonic())) == {late, ended}
    assert (late.waits, ended.waits, fresh.waits, begun.waits) == (False, False, True, True)
    assert queue.pieces == 2


def test_a_longer_timeout_than_the_queue_s_does_not_count() -> None:
    queue: FairQueue[Entry] = FairQueue(LIMITS)
    patient = entry(timeout_s=1000.0, age_s=5.1)
    queue.push(patient)
    assert queue.overdue(time.monotonic()) == [patient]


def test_who_is_refused_hears_when_to_come_back() -> None:
    queue: FairQueue[Entry] = FairQueue(LIMITS)
    for _ in range(30):
        queue.push(entry())
    assert queue.refusal("", 1.0, 10.0, unit_s=0.1, running=0.0, behind_s=0.0) is None
    refusal = queue.refusal("", 1.0, 4.0, unit_s=0.1, running=0.0, behind_s=0.0)
    assert str(refusal) == "overloaded: 3 s of work wait, and the request has 4 s; retry in 1.5 s"
    assert queue.refusal("", 1.0, 4.0, unit_s=0.01, running=0.0, behind_s=1.8) is not None


def test_work_behind_the_queue_counts() -> None:
    queue: FairQueue[Entry] = FairQueue(LIMITS)
    assert queue.refusal("", 1.0, 4.0, unit_s=0.0, running=0.0, behind_s=1.9) is None
    assert queue.refusal("", 1.0, 4.0, unit_s=0.0, running=0.0, behind_s=2.1) is not None


def test_an_empty_house_takes_everything_so_that_a_wrong_estimate_is_corrected() -> None:
    queue: FairQueue[Entry] = FairQueue(LIMITS)
    assert queue.refusal("", 1.0, 1.0, unit_s=1000.0, running=0.0, behind_s=0.0) is None


def test_a_caller_with_little_is_let_in_where_one_with_much_is_not() -> None:
    queue: FairQueue[Entry] = FairQueue(LIMITS)
    for _ in range(100):
        queue.push(entry("many"))
    assert queue.refusal("many", 1.0, 10.0, unit_s=0.1, running=0.0, behind_s=0.0) is not None
    assert queue.refusal("few", 1.0, 10.0, unit_s=0.1, running=0.0, behind_s=0.0) is None


@pytest.mark.parametrize("limits", [Limits(entries=3), Limits(size=35)])
def test_a_full_queue_turns_away_who_is_furthest_from_their_turn(limits: Limits) -> None:
    queue: FairQueue[Entry] = FairQueue(limits)
    many = [entry("many") for _ in range(3)]
    for one in many:
        assert queue.crowded_out(one) == []
        queue.push(one)
    assert queue.crowded_out(entry("many")) is None
    few = entry("few")
    assert queue.crowded_out(few) == [many[2]]
    queue.push(few)
    assert {queue.take()[0] for _ in range(3)} == {many[0], many[1], few}


def test_a_request_larger_than_the_queue_may_enter_an_empty_one() -> None:
    queue: FairQueue[Entry] = FairQueue(Limits(size=5))
    assert queue.crowded_out(entry()) == []


def test_nobody_is_refused_for_the_first_pieces_that_were_measured() -> None:
    pace = Pace()
    for number in range(ENOUGH_MEASURED):
        assert pace.seconds == 0.0, number
        pace.note(0.02, 0.2)
    assert pace.seconds == pytest.approx(0.1)
    for _ in range(200):
        pace.note(0.1, 4.0)
    assert pace.seconds == pytest.approx(0.025, rel=0.02)


def test_slow_pieces_need_not_be_many() -> None:
    pace = Pace()
    for _ in range(4):
        assert pace.seconds == 0.0
        pace.note(0.5, 1.0)
    assert pace.seconds == pytest.approx(0.5)


def test_the_hint_is_never_nothing() -> None:
    assert str(OverloadError("x", 0.0)).endswith("; retry in 0.1 s")
