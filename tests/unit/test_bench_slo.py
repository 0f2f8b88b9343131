"""The search for the highest sustained rate, on servers that are formulas, and the command on one that is real."""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from kserve_server import Call, Server, serving
from tritonclip_bench.cli_types import share as parse_share
from tritonclip_bench.errors import LoadError
from tritonclip_bench.load import loadrun
from tritonclip_bench.load.loadrun import LoadPlan
from tritonclip_bench.results.repeats import BETWEEN_RUNS
from tritonclip_bench.results.slo import MOST_STEPS, TOLERANCE, Objective, Search, Trial, judge, search
from tritonclip_client.main import main

OBJECTIVE = Objective(p99_ms=50, max_error=0.001)


def trial(rate: float, verdict: str) -> Trial:
    return Trial(rate, rate, rate, rate, 1.0, 0.0, verdict, "", results={"total": {"requests": 1000}})


def run(sustains: Callable[[float], bool], begin: float) -> Search:
    found = Search(OBJECTIVE)
    yielded = list(search(lambda rate: trial(rate, "sustained" if sustains(rate) else "failed"), begin, found))
    assert yielded == found.trials
    return found


@pytest.mark.parametrize("limit", [3.0, 100.0, 104.9, 12345.0])
@pytest.mark.parametrize("begin", [1.0, 90.0, 5000.0])
def test_the_limit_is_found_from_both_sides(limit: float, begin: float) -> None:
    found = run(lambda rate: rate <= limit, begin)
    best = found.sustained()
    assert best is not None
    assert limit / (1 + TOLERANCE) <= best.rate <= limit
    assert [one.rate for one in found.trials].count(best.rate) == 2
    assert found.notes() == []


def test_a_server_that_sustains_nothing() -> None:
    found = run(lambda rate: False, 64.0)
    assert found.sustained() is None
    assert 0.25 <= found.trials[-1].rate < 1
    assert found.to_dict()["sustained"] is None


def test_a_server_without_a_limit_ends_the_search() -> None:
    found = run(lambda rate: True, 1.0)
    assert len(found.trials) == MOST_STEPS
    assert found.sustained() == found.trials[-1]


def test_a_server_that_became_too_slow_meanwhile_ends_the_search() -> None:
    tried: list[float] = []
    found = run(lambda rate: not tried.append(rate) and len(tried) < 5, 10.0)
    assert len(found.trials) < 5 + 10 * MOST_STEPS
    assert found.trials[-1].verdict == "failed"


def test_what_passed_once_by_luck_is_not_told() -> None:
    """Below 100 always, up to 120 in one of two: what is told was tried twice, and nothing below it failed."""
    for seed in range(20):
        luck = random.Random(seed)
        found = run(lambda rate, luck=luck: rate <= 100 or (rate <= 120 and luck.random() < 0.5), 30.0)
        best = found.sustained()
        assert best is not None
        assert 100 / (1 + TOLERANCE) ** 3 <= best.rate <= 120
        assert all(one.rate > best.rate for one in found.trials if one.verdict == "failed")


def test_a_rate_that_fails_below_one_that_does_not_is_noted() -> None:
    found = Search(OBJECTIVE, [trial(50, "failed"), trial(80, "sustained"), trial(40, "sustained")])
    assert found.sustained().rate == 40
    assert "not monotonic: 50.0 requests/s failed and 80.0 did not" in found.notes()[0]


def test_a_percentile_of_few_requests_is_noted() -> None:
    few, many = (judge(1.5, results(requests=count, p99=40.0), OBJECTIVE) for count in (30, 100))
    assert Search(OBJECTIVE, [many]).notes() == []
    assert Search(OBJECTIVE, [few]).notes() == [
        "p99 is not known: of the 30 requests at 1.5 a second it is the slowest one; 100 are needed (--duration 67s)"
    ]


def results(**changes: float) -> dict:
    given = {"requests": 1000, "failures": 0, "unanswered": 0, "p99": 40.0, "answered": 100.0, "lag": 1.0, "cpu": 0.2}
    given |= changes
    total = {
        **{key: given[key] for key in ("requests", "failures", "unanswered")},
        "requests_per_s": given["answered"],
        "items_per_s": 2 * given["answered"],
        "latency_ms": {"p50": 1.0, "p95": 2.0, "p99": given["p99"]} if given["requests"] else None,
    }
    loop = {"offered_per_s": 100.0, "lag_ms_p99": given["lag"], "lag_ms_max": given["lag"]}
    return {"total": total, "open_loop": loop, "client_cpu_cores": given["cpu"], "window_s": 10.0}


@pytest.mark.parametrize(
    ("changes", "verdict", "reason"),
    [
        ({}, "sustained", ""),
        ({"p99": 51.0}, "failed", "p99 is 51.0 ms"),
        ({"failures": 2}, "failed", "0.20% of the requests failed"),
        ({"failures": 1}, "sustained", ""),
        ({"answered": 90.0}, "failed", "90.0 of 100.0 were answered a second"),
        ({"requests": 0, "failures": 5}, "failed", "100.00% of the requests failed"),
        ({"lag": 30.0, "p99": 90.0}, "generator", "p99 is 90.0 ms, 1 of 100 sent 30 ms late"),
        ({"lag": 30.0}, "sustained", ""),
        ({"lag": 15.0, "p99": 90.0}, "failed", "p99 is 90.0 ms"),
        ({"cpu": 0.95}, "generator", "0.95 of a core used"),
    ],
)
def test_a_trial_is_judged(changes: dict[str, float], verdict: str, reason: str) -> None:
    judged = judge(100, results(**changes), OBJECTIVE)
    assert judged.verdict == verdict
    assert reason in judged.reason
    assert judged.items_per_s == 2 * judged.answered


@pytest.mark.parametrize(("text", "share"), [("0.1%", 0.001), ("0.02", 0.02), ("0", 0.0), ("100%", 1.0)])
def test_shares(text: str, share: float) -> None:
    assert parse_share(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["-1", "2", "101%", "nan", "few"])
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="give a share from 0 to 1, or per cent"):
        parse_share(text)


def slo(address: str, *options: str) -> int:
    given = ["--scenario", "text", "--warmup", "1s", "--duration", "2s", "--users", "4"]
    return main(["bench", "slo", "--address", address, *given, *options])


def test_an_objective_that_one_caller_misses(capsys) -> None:
    with serving(Server(text_limit=64, on_infer=lambda call: time.sleep(0.1))) as server:
        assert slo(server.address, "--p99-ms", "50") == 1
    assert "no rate meets p99 <= 50 ms: p99 of a single caller, one request at a time, is 1" in capsys.readouterr().err


@pytest.mark.slow
def test_a_server_of_two_places_is_measured(tmp_path: Path, capsys) -> None:
    """Two at a time, 40 ms each: 50 a second at most, and fewer before the queue grows."""
    result = tmp_path / "result.json"
    with serving(Server(text_limit=64, on_infer=_forty_ms), workers=2) as server:
        assert slo(server.address, "--p99-ms", "400", "--price-per-hour", "1", "--json", str(result)) == 0
    record = json.loads(result.read_text())
    assert 10 < record["sustained"]["rate"] <= 50
    assert len({trial["verdict"] for trial in record["trials"]}) > 1
    assert record["plan"]["scenario"] == "text"
    assert record["cost"]["dollars_per_million"] == pytest.approx(1e6 / record["sustained"]["items_per_s"] / 3600)
    out = capsys.readouterr().out
    assert "sustained with p99 <= 400 ms and at most 0.10% failed" in out
    assert " texts per dollar, $" in out


def _forty_ms(call: Call) -> None:
    time.sleep(0.04)


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Callable[[Callable[[LoadPlan], dict]], None]]]:
    """A server that is there, and a way to say what the load generator measures of it."""
    with serving(Server(text_limit=64)) as server:
        images = {"source": "drawn", "count": 1, "mean_bytes": 1}

        def planted(measure: Callable[[LoadPlan], dict]) -> None:
            monkeypatch.setattr(loadrun, "run_load", lambda plan, *, progress: measure(plan) | {"images": images})

        yield server.address, planted


def test_every_trial_is_kept_with_what_it_measured(plant, tmp_path: Path) -> None:
    address, planted = plant
    seeds = set()

    def measure(plan: LoadPlan) -> dict:
        seeds.add(plan.seed)
        return results(answered=100.0, p99=40.0 if (plan.rate or 0) <= 60 else 60.0)

    planted(measure)
    path = tmp_path / "slo.json"
    assert slo(address, "--p99-ms", "50", "--label", "x", "--json", str(path)) == 0
    record = json.loads(path.read_text())
    assert (record["schema"], record["kind"], record["label"], record["broken"]) == (2, "slo", "x", None)
    assert record["alone"]["total"]["requests"] == 1000
    assert len(seeds) == 1 + len(record["trials"])
    for one in record["trials"]:
        assert (one["p50_ms"], one["p95_ms"]) == (1.0, 2.0)
        assert one["results"]["total"]["latency_ms"]["p99"] == one["p99_ms"]
    assert 57 <= record["sustained"]["rate"] <= 60
    assert "results" not in record["sustained"]


def test_an_impossible_objective_is_written_too(plant, tmp_path: Path, capsys) -> None:
    address, planted = plant
    planted(lambda plan: results(p99=70.0))
    path = tmp_path / "slo.json"
    assert slo(address, "--p99-ms", "50", "--json", str(path)) == 1
    assert "one request at a time, is 70.0 ms; give a longer --p99-ms" in capsys.readouterr().err
    record = json.loads(path.read_text())
    assert (record["trials"], record["sustained"]) == ([], None)
    assert "no rate meets p99 <= 50 ms" in record["notes"][0]


@pytest.mark.parametrize("trouble", ["Ctrl-C", "in the trial", "the generator ends"])
def test_a_search_that_breaks_keeps_its_trials(plant, tmp_path: Path, capsys, trouble: str) -> None:
    address, planted = plant

    def measure(plan: LoadPlan) -> dict:
        if plan.rate is None or plan.rate < 150:
            return results()
        if trouble == "Ctrl-C":
            raise KeyboardInterrupt
        if trouble == "the generator ends":
            raise LoadError("planted")
        return results() | {"broken": "the server died"}

    planted(measure)
    path = tmp_path / "slo.json"
    assert slo(address, "--p99-ms", "50", "--json", str(path)) == (130 if trouble == "Ctrl-C" else 1)
    record = json.loads(path.read_text())
    reason = {"Ctrl-C": BETWEEN_RUNS, "the generator ends": "planted", "in the trial": "the server died"}[trouble]
    assert record["broken"] == reason
    assert [one["verdict"] for one in record["trials"]][:2] == ["sustained", "sustained"]
    assert record["sustained"]["rate"] == 100
    assert f"broken: {reason}" in capsys.readouterr().out


def test_a_server_that_dies_in_a_trial_is_not_called_too_slow(monkeypatch, tmp_path: Path, capsys) -> None:
    path = tmp_path / "slo.json"
    images = {"source": "drawn", "count": 1, "mean_bytes": 1}
    with ExitStack() as stack:
        server = stack.enter_context(serving(Server(text_limit=64)))

        def measure(plan: LoadPlan, *, progress: bool) -> dict:
            if plan.rate is not None and plan.rate > 150:
                stack.close()
                return results(failures=300) | {"images": images}
            return results() | {"images": images}

        monkeypatch.setattr(loadrun, "run_load", measure)
        assert slo(server.address, "--p99-ms", "50", "--json", str(path)) == 1
    record = json.loads(path.read_text())
    assert "no ready server" in record["broken"]
    assert {one["verdict"] for one in record["trials"]} == {"sustained"}


def test_the_generator_is_called_the_limit_only_where_it_was() -> None:
    above = Search(OBJECTIVE, [trial(50, "sustained"), trial(100, "generator"), trial(75, "failed")])
    assert above.notes() == []
    below = Search(OBJECTIVE, [trial(50, "sustained"), trial(100, "failed"), trial(75, "generator")])
    assert "the limit before the server, from 75.0 requests/s on" in below.notes()[0]


def test_nothing_listens(capsys) -> None:
    assert slo("127.0.0.1:9", "--p99-ms", "50") == 3
