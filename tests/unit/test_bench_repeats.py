"""Runs that are repeated: when it ends, what is kept where it breaks, and the curve that is made of them."""

from __future__ import annotations

import argparse
import itertools
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from kserve_server import Server, serving
from tritonclip_bench.errors import BenchError, LoadError
from tritonclip_bench.files import saving
from tritonclip_bench.load.loadrun import LoadPlan
from tritonclip_bench.results import repeats
from tritonclip_bench.results.curve import measure_curve, render
from tritonclip_bench.results.repeat_options import add_repeat_arguments, run_length
from tritonclip_bench.results.repeats import BETWEEN_RUNS, RunLength, another, exit_status, is_good, measure_record
from tritonclip_bench.results.report import render as render_report
from tritonclip_bench.traffic.captions import captions
from tritonclip_client.main import main
from tritonclip_client.spec import ServingSpec

PLAN = LoadPlan("127.0.0.1:9", "text", 2, 1, 0, 30, 1, 10, seed=7, repeat_texts=False)
SPEC = ServingSpec.from_json(json.dumps(Server().spec))
SERVER = SimpleNamespace(version="2.51.0", spec=SPEC, max_batch_size={})


def results(items_per_s: float, *, failures: int = 0, broken: str | None = None) -> dict:
    times = {"mean": 2.0, "p50": 1.0, "p95": 2.0, "p99": 3.0, "max": 4.0}
    summary = {
        "requests": 10 - failures,
        "items": 10,
        "items_per_s": items_per_s,
        "requests_per_s": items_per_s,
        "latency_ms": times,
        "unanswered": 0,
        "failures": failures,
        "failure_reasons": {"planted": failures} if failures else {},
    }
    of_client = {"client_cpu_cores": 0.1, "machine_cpu_share": 0.2, "window_s": 1.0, "open_loop": {}}
    images = {"source": "drawn", "count": 1, "mean_bytes": 1}
    return {"total": summary, "by_model": {"embed_text": summary}, **of_client, "images": images, "broken": broken}


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[LoadPlan]]:
    """Give what the load generator measures, run by run; returns the plans that it was asked for."""

    def planted(*given: float | dict | BaseException) -> list[LoadPlan]:
        plans: list[LoadPlan] = []
        answers = iter(given)

        def run_load(plan: LoadPlan, *, progress: bool) -> dict:
            plans.append(plan)
            answer = next(answers)
            if isinstance(answer, BaseException):
                raise answer
            return answer if isinstance(answer, dict) else results(answer)

        monkeypatch.setattr(repeats, "run_load", run_load)
        return plans

    return planted


def as_json(value: dict) -> dict:
    return json.loads(json.dumps(value))


def measure(length: RunLength) -> tuple[dict, list[dict]]:
    saved: list[dict] = []
    record = measure_record(PLAN, SERVER, None, length, save=lambda record: saved.append(as_json(record)))
    return as_json(record), saved


def test_one_run_says_that_it_is_one(plant) -> None:
    plant(100)
    record, saved = measure(RunLength())
    assert (record["schema"], record["kind"], record["label"], record["broken"]) == (2, "load", None, None)
    assert record["repeats"] == [record["results"]]
    assert record["spread"]["items_per_s"] == {
        "n": 1,
        "mean": 100,
        "low": 100,
        "high": 100,
        "half_width": None,
        "relative": None,
    }
    assert saved == [record]
    assert "±" not in render_report(record)
    assert is_good(record)


def test_runs_that_agree_end_early(plant) -> None:
    plans = plant(100, 101, 99.5, AssertionError("one too many"))
    record, saved = measure(RunLength(3, 10, 0.05))
    assert len(plans) == len(saved) == 3
    assert record["results"]["total"]["items_per_s"] == 100
    assert [run["total"]["items_per_s"] for run in record["repeats"]] == [100, 101, 99.5]
    assert record["warnings"] == []
    assert "100.2 items/s ± 1.9% (95 % confidence of 3 runs, 99.5 to 101.0)" in render_report(record)


def test_runs_that_do_not_agree_go_on_and_it_is_said(plant) -> None:
    plans = plant(*itertools.islice(itertools.cycle([100, 200]), 6))
    record, _ = measure(RunLength(3, 6, 0.05))
    assert len(plans) == 6
    assert "after 6 runs, and 5.0% was asked for" in record["warnings"][0]
    assert f"warning: {record['warnings'][0]}" in render_report(record)


def test_a_server_that_serves_nothing_is_not_asked_for_ever(plant) -> None:
    plans = plant(0, 0, 0, AssertionError("one too many"))
    measure(RunLength(3, 10, 0.05))
    assert len(plans) == 3


def test_every_run_sends_texts_of_its_own(plant) -> None:
    plans = plant(1, 1, 1)
    measure(RunLength(3, 3))
    sent = [set(itertools.islice(captions(plan.seed), 2000)) for plan in plans]
    assert plans[0] == PLAN
    assert not any(one & other for one, other in itertools.combinations(sent, 2))


@pytest.mark.parametrize(
    ("trouble", "reason", "kept"),
    [
        (KeyboardInterrupt(), BETWEEN_RUNS, 2),
        (LoadError("the load generator ended"), "the load generator ended", 2),
        (results(3, broken="the server died"), "the server died", 3),
    ],
)
def test_what_was_measured_is_kept_when_a_run_breaks(plant, trouble, reason, kept) -> None:
    plant(100, 102, trouble, AssertionError("one too many"))
    record, saved = measure(RunLength(5, 5))
    assert record["broken"] == reason
    assert len(record["repeats"]) == kept
    # A run that broke is told, and counts in no mean.
    assert (record["spread"]["items_per_s"]["n"], record["spread"]["items_per_s"]["mean"]) == (2, 101)
    assert record["results"]["total"]["items_per_s"] == 100
    assert saved[-1] == record
    assert render_report(record).count(reason) == 1
    assert not is_good(record)
    assert exit_status(record["broken"], False) == (130 if isinstance(trouble, KeyboardInterrupt) else 1)


def test_the_first_run_has_nothing_to_keep(plant) -> None:
    plant(LoadError("planted"))
    with pytest.raises(LoadError, match="planted"):
        measure(RunLength(3, 3))


def test_a_failure_in_any_run_is_a_failure(plant) -> None:
    plant(results(100, failures=1), 101, 102)
    record, _ = measure(RunLength(3, 3))
    assert not is_good(record)
    assert record["results"]["total"]["failures"] == 0
    assert any("some requests failed" in warning for warning in record["warnings"])


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_repeat_arguments(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize(
    ("words", "length"),
    [
        ((), RunLength(1, 1)),
        (("--runs", "5"), RunLength(5, 5)),
        (("--spread", "2%"), RunLength(3, 10, 0.02)),
        (("--spread", "0.05", "--max-runs", "2"), RunLength(2, 2, 0.05)),
        (("--spread", "2%", "--min-runs", "12"), RunLength(12, 12, 0.02)),
    ],
)
def test_how_often(words: tuple[str, ...], length: RunLength) -> None:
    assert run_length(options(*words)) == length


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--spread", "2%", "--runs", "3"), "give one of them"),
        (("--min-runs", "3"), "--min-runs 3 without --spread"),
        (("--spread", "2%", "--min-runs", "1"), "give --min-runs from 2"),
        (("--spread", "2%", "--min-runs", "5", "--max-runs", "4"), "at least 5 and at most 4 runs"),
        (("--spread", "0"), "give a share above 0"),
    ],
)
def test_what_contradicts_itself(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        run_length(options(*words))


def curve_of(*users: int, length: RunLength, path: Path | None = None) -> dict:
    curve: dict = {}
    plans = [another(LoadPlan(**{**vars(PLAN), "users": number}), 0) for number in users]
    measure_curve(plans, SERVER, None, length, curve, label="a", save=saving(path))
    return as_json(curve)


def test_a_curve_has_one_record_a_step(plant, tmp_path: Path) -> None:
    plans = plant(100, 102, 200, 204)
    path = tmp_path / "curve.json"
    curve = curve_of(1, 2, length=RunLength(2, 2), path=path)
    assert (curve["kind"], curve["label"], curve["broken"]) == ("curve", "a", None)
    assert [(one["kind"], one["label"], one["plan"]["users"]) for one in curve["records"]] == [
        ("load", "1 user", 1),
        ("load", "2 users", 2),
    ]
    assert json.loads(path.read_text()) == curve
    assert len({plan.seed for plan in plans}) == 4
    rows = render(curve).splitlines()
    assert rows[2].split()[:3] == ["1", "user", "101.0"]
    assert "± 12.6%" in rows[2]


@pytest.mark.parametrize("trouble", [KeyboardInterrupt(), results(1, broken=BETWEEN_RUNS)])
def test_a_curve_that_breaks_keeps_its_steps(plant, tmp_path: Path, trouble) -> None:
    plant(100, trouble, AssertionError("one too many"))
    path = tmp_path / "curve.json"
    curve = curve_of(1, 2, 4, length=RunLength(), path=path)
    assert curve["broken"] == BETWEEN_RUNS
    assert curve["records"][0]["results"]["total"]["items_per_s"] == 100
    assert json.loads(path.read_text()) == curve
    assert f"broken: {BETWEEN_RUNS}" in render(curve)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving(Server(text_limit=64)) as server:
        yield server.address


SHORT = ("--scenario", "text", "--warmup", "0s", "--duration", "1s")


def test_the_command_repeats_on_a_server(address: str, tmp_path: Path, capsys) -> None:
    result = tmp_path / "result.json"
    line = ["bench", "--address", address, *SHORT, "--users", "2", "--runs", "2", "--label", "x", "--json", str(result)]
    assert main(line) == 0
    captured = capsys.readouterr()
    assert "(95 % confidence of 2 runs, " in captured.out
    assert "run 2: " in captured.err
    record = json.loads(result.read_text())
    assert (record["label"], record["spread"]["items_per_s"]["n"], len(record["repeats"])) == ("x", 2, 2)


@pytest.mark.slow
def test_a_curve_of_a_server(address: str, tmp_path: Path, capsys) -> None:
    path = tmp_path / "curve.json"
    line = ["bench", "curve", "--address", address, *SHORT, "--users", "2,1", "--rates", "20", "--json", str(path)]
    assert main([*line, "--processes", "2"]) == 0
    rows = [row.split("  ")[0] for row in capsys.readouterr().out.splitlines()[2:5]]
    assert rows == ["1 user", "2 users", "20 requests/s"]
    steps = [step["plan"] for step in json.loads(path.read_text())["records"]]
    assert [(step["users"], step["rate"], step["processes"]) for step in steps] == [
        (1, None, 1),
        (2, None, 2),
        (16, 20.0, 2),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--runs", "5"], ["curve", "--users", "1,2,3"], ["slo", "--p99-ms", "500"]])
def test_an_interruption_keeps_what_was_measured(address: str, tmp_path: Path, words: list[str]) -> None:
    path = tmp_path / "result.json"
    line = [sys.executable, "-m", "tritonclip_client.main", "bench", *words, "--address", address, *SHORT]
    with subprocess.Popen(
        [*line, "--json", str(path)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as run:
        for news in run.stderr:
            if news.startswith(("  run 1", "step 2")) or "sustained" in news:
                break
        run.send_signal(signal.SIGINT)
        out, err = run.communicate(timeout=60)
    assert run.returncode == 130, err
    assert "broken: interrupted" in out
    record = json.loads(path.read_text())
    assert record["broken"].startswith("interrupted")
    assert len(record.get("repeats") or record.get("records") or record["trials"]) >= 1


@pytest.mark.parametrize("words", [["--users", "1,0"], ["--users", "1,,2"], ["--rates", "5,-1"]])
def test_steps_that_are_none(words: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["bench", "curve", *words])
    assert exit_.value.code == 2
    assert "give a" in capsys.readouterr().err
