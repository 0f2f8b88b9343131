"""The search for settings, on machines that are formulas: what is found, and what is never recommended."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest

from tritonclip_bench.errors import TrialFailedError
from tritonclip_bench.tune.search import FINAL, MIN_GAIN, Sweep
from tritonclip_bench.tune.search_space import neighbours
from tritonclip_bench.tune.trials import MIN_ROUNDS, OVERHEAD_S, Candidate, Effort, Measured, predicted
from tritonclip_export.settings import Settings

PRESENT = Candidate(Settings(preprocess_threads=1, threads=1))
EFFORT = Effort(seconds=10, warmup_s=3, rounds=8, budget_s=3600)


def changed(**changes: object) -> Candidate:
    return Candidate(PRESENT.settings.changed(changes))


class Machine:
    """A server of so many items a second by its settings, times noise and drift; it knows when it is asked."""

    def __init__(
        self, rate: Callable[[Settings], float], *, noise: float = 0.0, seed: int = 0, drift_per_hour: float = 0.0
    ) -> None:
        self.now_s = 0.0
        self.asked: list[tuple[Candidate, int]] = []
        self._rate, self._noise, self._drift = rate, noise, drift_per_hour
        self._luck = random.Random(seed)

    def measure(self, candidate: Candidate, seconds: int) -> Measured:
        self.asked.append((candidate, seconds))
        self.now_s += 15 + seconds
        rate = self._rate(candidate.settings) * (1 + self._drift * self.now_s / 3600)
        rate *= 1 + self._noise * self._luck.gauss(0, 1)
        return Measured(rate, 16000 / rate)

    def sweep(self, effort: Effort = EFFORT, exports: int = 0) -> Sweep:
        return Sweep(PRESENT, self.measure, effort, exports=exports, clock=lambda: self.now_s)


def run(machine: Machine, candidates: list[Candidate], effort: Effort = EFFORT):
    sweep = machine.sweep(effort)
    finalists = sweep.search([("grid", lambda champion: candidates)])
    sweep.compare(finalists, PRESENT)
    return sweep, sweep.verdict(finalists, PRESENT)


def by_threads(settings: Settings) -> float:
    return 100.0 * (settings.threads or 2)


GRID = [changed(threads=threads, preprocess_threads=n) for threads in (1, 0) for n in (1, 2, 3, 4)][1:]


def test_the_better_settings_are_found_and_only_them() -> None:
    _, verdict = run(Machine(by_threads, noise=0.02), [changed(threads=0), changed(preprocess_threads=2)])
    assert verdict.kind == "better"
    assert verdict.best == changed(threads=0)
    assert verdict.ratio.mean == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize("noise", [0.01, 0.05, 0.2])
def test_equal_settings_are_hardly_ever_recommended(noise: float) -> None:
    """All candidates are as fast as the present settings: what wins, wins by luck. At most 5 % of the sweeps do."""
    wins = sum(run(Machine(lambda _: 100.0, noise=noise, seed=seed), GRID)[1].kind == "better" for seed in range(200))
    assert wins <= 10


@pytest.mark.parametrize("gain", [1.15, 1.4])
def test_a_real_gain_is_found_in_noise(gain: float) -> None:
    def rate(settings: Settings) -> float:
        return 100.0 * (gain if settings.preprocess_threads == 3 else 1.0)

    found = [run(Machine(rate, noise=0.03, seed=seed), GRID)[1] for seed in range(50)]
    assert sum(one.kind == "better" and one.best.settings.preprocess_threads == 3 for one in found) >= 45


def test_a_machine_that_slows_down_favors_nobody() -> None:
    """The present settings are measured first; on a machine that loses 60 % an hour all others would look worse."""
    machine = Machine(lambda settings: 100.0 * (1.1 if settings.threads == 0 else 1.0), drift_per_hour=-0.6)
    _, verdict = run(machine, [changed(threads=0)])
    assert verdict.kind == "better"
    faster, verdict = run(Machine(lambda _: 100.0, drift_per_hour=8.0), GRID)
    assert verdict.kind == "as good", faster.ratio(GRID[0])


def test_a_gain_below_the_least_is_not_worth_a_change() -> None:
    _, verdict = run(Machine(lambda settings: 100.0 if settings.threads else 100.0 * (1 + MIN_GAIN / 2)), GRID)
    assert verdict.kind == "as good"
    assert verdict.best is None


def test_halving_spends_its_time_on_the_better_half() -> None:
    machine = Machine(lambda settings: 100.0 + settings.preprocess_threads)
    candidates = [changed(preprocess_threads=n) for n in range(2, 10)]
    sweep = machine.sweep()
    sweep.search([("grid", lambda champion: candidates)])
    lengths = [[one.seconds for one in sweep.trials[candidate].rounds] for candidate in candidates]
    assert lengths == [[10]] * 4 + [[10, 20]] * 2 + [[10, 20, 40]] * 2
    present = [index for index, (candidate, _) in enumerate(machine.asked) if candidate == PRESENT]
    assert max(after - before for before, after in itertools.pairwise(present)) <= 7


def test_one_setting_after_the_other() -> None:
    """Neither change alone is all; the second phase begins at what the first one found."""

    def rate(settings: Settings) -> float:
        return 50.0 * min(settings.preprocess_threads * 1.5, settings.threads or 4)

    phases = [
        (name, lambda champion, name=name, values=values: [
            Candidate(one) for one in neighbours(champion.settings, name, values)
        ])
        for name, values in {"preprocess_threads": (2, 4), "threads": (2, 0)}.items()
    ]  # fmt: skip
    machine = Machine(lambda settings: rate(settings) + settings.preprocess_threads * 5, noise=0.01)
    sweep = machine.sweep()
    finalists = sweep.search(phases)
    assert finalists[0] == changed(preprocess_threads=4, threads=0)
    sweep.compare(finalists, PRESENT)
    assert sweep.verdict(finalists, PRESENT).best == finalists[0]


def failing(candidate: Candidate, seconds: int) -> Measured:
    if candidate.settings.threads == 0:
        raise TrialFailedError("the server did not start")
    return Measured(100.0 * candidate.settings.preprocess_threads, 10.0)


def test_what_fails_is_kept_with_its_reason_and_the_search_goes_on() -> None:
    sweep = Sweep(PRESENT, failing, EFFORT)
    finalists = sweep.search([("grid", lambda champion: GRID)])
    sweep.compare(finalists, PRESENT)
    assert sweep.verdict(finalists, PRESENT).best == changed(preprocess_threads=4)
    assert sweep.trials[changed(threads=0)].failed == "the server did not start"
    assert not any(one.settings.threads == 0 for one in finalists)


def test_a_best_so_far_that_fails_later_is_given_up() -> None:
    """Two processes win the first phase, and fail in the second: that goes on from the present settings."""
    machine = Machine(lambda settings: 100.0 * settings.preprocess_threads * (settings.threads or 1.5))

    def measure(candidate: Candidate, seconds: int) -> Measured:
        if candidate.settings.preprocess_threads == 2 and len(machine.asked) > 1:
            raise TrialFailedError("no memory")
        return machine.measure(candidate, seconds)

    sweep = Sweep(PRESENT, measure, EFFORT, clock=lambda: machine.now_s)
    both = changed(preprocess_threads=2, threads=0)
    phases = [("one", lambda _: [changed(preprocess_threads=2)]), ("two", lambda _: [both, changed(threads=0)])]
    assert sweep.search(phases) == [changed(threads=0)]


def test_present_settings_that_fail_end_the_search() -> None:
    def measure(candidate: Candidate, seconds: int) -> Measured:
        raise TrialFailedError("no memory")

    sweep = Sweep(PRESENT, measure, EFFORT)
    with pytest.raises(TrialFailedError, match="what all others are compared with cannot be measured: no memory"):
        sweep.search([("grid", lambda champion: GRID)])


def test_a_finalist_that_fails_at_last_does_not_win() -> None:
    machine = Machine(by_threads)

    def measure(candidate: Candidate, seconds: int) -> Measured:
        if candidate != PRESENT and len(machine.asked) > 4:
            raise TrialFailedError("1 of 100 requests failed")
        return machine.measure(candidate, seconds)

    sweep = Sweep(PRESENT, measure, EFFORT, clock=lambda: machine.now_s)
    finalists = sweep.search([("grid", lambda champion: [changed(threads=0)])])
    assert finalists
    sweep.compare(finalists, PRESENT)
    assert sweep.verdict(finalists, PRESENT).best is None


@pytest.mark.parametrize("budget_s", [600, 900, 2000])
def test_the_budget_is_kept_and_leaves_time_for_the_final(budget_s: float) -> None:
    machine = Machine(by_threads, noise=0.05)
    sweep, verdict = run(machine, GRID, Effort(10, 3, 8, budget_s))
    assert machine.now_s <= budget_s
    assert sweep.ratio(verdict.best).n >= MIN_ROUNDS


def test_what_the_budget_left_untried_may_be_better() -> None:
    """The three that were tried are as fast as the present settings; the last four are not."""
    sweep, verdict = run(Machine(by_threads), GRID, Effort(10, 3, 8, 400))
    assert verdict.kind == "undecided"
    assert sweep.untried == GRID[3:]


def test_a_budget_that_ends_before_the_final_decides_nothing() -> None:
    machine = Machine(by_threads)
    sweep = machine.sweep(Effort(10, 3, 8, 400))
    finalists = sweep.search([("grid", lambda champion: [changed(threads=0)])])
    # Something else took the time that was kept.
    machine.now_s = 350
    sweep.compare(finalists, PRESENT)
    assert sweep.verdict(finalists, PRESENT).kind == "undecided"


def test_an_interrupt_leaves_what_was_measured() -> None:
    machine = Machine(by_threads)

    def measure(candidate: Candidate, seconds: int) -> Measured:
        if len(machine.asked) == 3:
            raise KeyboardInterrupt
        return machine.measure(candidate, seconds)

    sweep = Sweep(PRESENT, measure, EFFORT, clock=lambda: machine.now_s)
    with pytest.raises(KeyboardInterrupt):
        sweep.search([("grid", lambda champion: GRID)])
    assert sum(len(trial.rounds) for trial in sweep.trials.values()) == 3


def with_p99(p99_ms: Callable[[Settings], float], rate: Callable[[Settings], float], present_ms: float = 80.0):
    def measure(candidate: Candidate, seconds: int) -> Measured:
        slow_ms = present_ms if candidate == PRESENT else p99_ms(candidate.settings)
        return Measured(rate(candidate.settings), slow_ms)

    sweep = Sweep(PRESENT, measure, Effort(10, 3, 8, 1e6, within_p99_ms=100.0))
    finalists = sweep.search([("grid", lambda champion: GRID)])
    sweep.compare(finalists, PRESENT)
    return sweep.verdict(finalists, PRESENT)


def test_the_fastest_within_the_objective_wins() -> None:
    verdict = with_p99(
        lambda settings: 150.0 if settings.threads == 0 else 90.0,
        lambda settings: by_threads(settings) + 10 * settings.preprocess_threads,
    )
    assert verdict.kind == "better"
    assert verdict.best == changed(preprocess_threads=4)


def test_settings_that_meet_an_objective_which_the_present_ones_miss() -> None:
    """They may be slower."""
    verdict = with_p99(
        lambda settings: 90.0 if settings.preprocess_threads == 2 else 150.0,
        lambda settings: 200.0 / settings.preprocess_threads,
        present_ms=120.0,
    )
    assert verdict.kind == "better"
    assert verdict.best.settings.preprocess_threads == 2
    assert verdict.ratio.mean == pytest.approx(0.5)


def test_an_objective_that_nothing_meets() -> None:
    assert with_p99(lambda settings: 150.0, by_threads, present_ms=120.0).kind == "missed"


def test_another_export_is_compared_in_rounds_of_its_own() -> None:
    machine = Machine(by_threads)

    def measure(candidate: Candidate, seconds: int) -> Measured:
        found = machine.measure(candidate, seconds)
        return Measured(found.items_per_s * (3 if candidate.export else 1), 10.0)

    sweep = Sweep(PRESENT, measure, EFFORT, exports=1, clock=lambda: machine.now_s)
    other = Candidate(PRESENT.settings, "precision=float16")
    sweep.compare([other], PRESENT, "exports")
    assert sweep.ratio(other, "exports").mean == pytest.approx(3)
    assert sweep.ratio(other, FINAL) is None


def test_what_is_foretold_is_not_exceeded() -> None:
    for sizes in ([1], [2, 2], [7], [3, 1, 4]):
        machine = Machine(lambda _: 100.0, noise=0.05)
        sweep = machine.sweep(Effort(10, 3, 8, 1e6))
        phases = [
            (
                str(at),
                lambda champion, at=at, size=size: [changed(queue_seconds=at + n / 10) for n in range(1, size + 1)],
            )
            for at, size in enumerate(sizes)
        ]
        finalists = sweep.search(phases)
        sweep.compare(finalists, PRESENT)
        runs, most_s, least_s = predicted(sizes, sweep.effort, 0)
        assert len(machine.asked) <= runs
        assert sum(seconds for _, seconds in machine.asked) + len(machine.asked) * (OVERHEAD_S + 3) <= most_s
        assert least_s <= most_s


def test_one_unlucky_look_ends_no_search() -> None:
    """The only candidate gains 8 %, and its first run was slow."""
    machine = Machine(lambda settings: 100.0 if settings.threads else 108.0, noise=0.01)

    def measure(candidate: Candidate, seconds: int) -> Measured:
        found = machine.measure(candidate, seconds)
        return Measured(found.items_per_s * (0.88 if len(machine.asked) == 2 else 1), found.p99_ms)

    sweep = Sweep(PRESENT, measure, EFFORT, clock=lambda: machine.now_s)
    finalists = sweep.search([("grid", lambda champion: [changed(threads=0)])])
    sweep.compare(finalists, PRESENT)
    assert sweep.verdict(finalists, PRESENT).best == changed(threads=0)
