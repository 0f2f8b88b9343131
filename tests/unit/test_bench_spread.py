"""How well a mean is known, and when two differ: against hand-made figures, SciPy's own test, and many drawn series."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tritonclip_bench.results.spread import difference, spread, spreads


def test_the_interval_of_three_values() -> None:
    # Student's t at 97.5 % with 2 degrees of freedom is 4.3027, the standard deviation 1.
    found = spread([9.0, 10.0, 11.0])
    assert (found.n, found.mean, found.low, found.high) == (3, 10, 9, 11)
    assert found.half_width == pytest.approx(4.3027 / 3**0.5, rel=1e-4)
    assert found.relative == pytest.approx(found.half_width / 10)


def test_one_value_has_no_spread() -> None:
    found = spread([5.0])
    assert (found.n, found.mean, found.half_width, found.relative) == (1, 5.0, None, None)
    assert difference([5.0], [6.0, 7.0]).exceeds_noise is None


def test_equal_values_and_zeros() -> None:
    assert spread([4.0, 4.0]).relative == 0
    assert spread([0.0, 0.0]).relative is None
    assert difference([4.0, 4.0], [5.0, 5.0]).exceeds_noise is True
    assert difference([4.0, 4.0], [4.0, 4.0]).exceeds_noise is False


@pytest.mark.parametrize("n", [3, 5])
def test_the_interval_holds_the_truth_95_times_of_100(n: int) -> None:
    random = np.random.default_rng(n)
    held = [abs((found := spread(random.normal(100, 3, n))).mean - 100) <= found.half_width for _ in range(3000)]
    assert 0.935 <= np.mean(held) <= 0.965


def test_a_difference_is_judged_as_scipy_judges_it() -> None:
    random = np.random.default_rng(1)
    verdicts = set()
    for _ in range(200):
        first = random.normal(100, 1, random.integers(2, 6))
        second = random.normal(100 + random.uniform(0, 8), 3, random.integers(2, 6))
        p = stats.ttest_ind(first, second, equal_var=False).pvalue
        found = difference(first, second)
        assert found.exceeds_noise == (p < 0.05)
        assert found.value == pytest.approx(second.mean() - first.mean())
        verdicts.add(found.exceeds_noise)
    assert verdicts == {True, False}


def run(items_per_s: float, latency: dict[str, float] | None = None, broken: str | None = None) -> dict:
    total = {"items_per_s": items_per_s, "requests_per_s": items_per_s / 2, "latency_ms": latency}
    return {"total": total, "broken": broken}


def test_broken_runs_and_runs_without_an_answer_do_not_count() -> None:
    times = {"p50": 1.0, "p99": 4.0}
    found = spreads([run(10, times), run(12, {"p50": 1.0, "p99": 6.0}), run(3, times, broken="the server died")])
    assert (found["items_per_s"]["n"], found["items_per_s"]["mean"]) == (2, 11)
    assert (found["requests_per_s"]["mean"], found["p99_ms"]["mean"]) == (5.5, 5)
    assert spreads([run(0)])["p99_ms"] is None
    assert spreads([run(3, times, broken="the server died")])["items_per_s"]["mean"] == 3
