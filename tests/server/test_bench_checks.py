"""The scripts that check the load test: against perf_analyzer, against itself, and against a server without work."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from generator_capacity import CASES
from perf_analyzer import agree, compare
from perf_analyzer_tool import Measured, command, read_report
from repeatability import compare as compare_records
from tritonclip_bench.errors import BenchError
from tritonclip_serve import TritonServer

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# As perf_analyzer 2.50.0 writes it.
HEADER = (
    "Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,Server Compute Input,"
    "Server Compute Infer,Server Compute Output,Client Recv,p50 latency,p90 latency,p95 latency,p99 latency"
)


def test_the_report_is_read_in_milliseconds(tmp_path: Path) -> None:
    path = tmp_path / "report.csv"
    path.write_text(f"{HEADER}\n4,240.135,0,15000,100,20,300,10,0,15489,20000,25000,42214\n")
    assert read_report(path) == {"requests_per_s": 240.135, "p50_ms": 15.489, "p99_ms": 42.214}


@pytest.mark.parametrize("text", ["", f"{HEADER}\n", "Concurrency,Other\n4,1\n"])
def test_another_report_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "report.csv"
    path.write_text(text)
    with pytest.raises(BenchError, match="no report of one measurement"):
        read_report(path)


def test_the_tools_agree_where_throughput_and_p99_do() -> None:
    def rounds(*values: tuple[float, float]) -> list[Measured]:
        return [Measured(rate, p99 / 2, p99, 0.1) for rate, p99 in values]

    theirs = rounds((100, 50), (102, 51), (200, 90))
    near, slow, late = (rounds((96, 47), (95, 300), (97, 48)), rounds((90, 50)), rounds((100, 60)))
    assert agree(compared := compare({"ours": near, "perf_analyzer": theirs}))
    assert compared["requests_per_s"] == {"ours": 96, "perf_analyzer": 102, "ratio": 96 / 102}
    assert not agree(compare({"ours": slow, "perf_analyzer": theirs}))
    assert not agree(compare({"ours": late, "perf_analyzer": theirs}))


def test_an_open_loop_is_poisson_and_waits_for_nobody() -> None:
    words = {}
    for rate in (None, 20.0):
        args = argparse.Namespace(users=4, rate=rate, seconds=30)
        words[rate] = command(Path("p"), "127.0.0.1:1", Path("d"), Path("r"), args)
    assert "--concurrency-range 4 --sync" in " ".join(words[None])
    assert "--request-rate-range 20 --request-distribution poisson --async" in " ".join(words[20.0])
    assert "--measurement-interval 10000 --max-trials 3" in " ".join(words[None])


def test_two_records_of_one_setting_are_compared() -> None:
    def record(*rates: float) -> dict:
        return {"repeats": [{"total": {"items_per_s": rate, "requests_per_s": rate}} for rate in rates]}

    assert not compare_records([record(100, 102, 101), record(101, 103, 99)])["items_per_s"]["exceeds_noise"]
    assert compare_records([record(100, 102, 101), record(111, 113, 112)])["items_per_s"]["exceeds_noise"]


@pytest.mark.slow
@pytest.mark.network
def test_perf_analyzer_measures_the_same_server(server: TritonServer, tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    words = ["--repository", server.repository, "--folder", tmp_path / "tool", "--log", tmp_path / "log"]
    words += ["--seconds", "3", "--rounds", "1", "--users", "2", "--json", result]
    done = run("perf_analyzer.py", *words)
    if "could not be installed" in done.stderr:
        pytest.skip("no package index answers")
    # 1 says that the two disagree in this very short run beside other tests, which is no failure of the script.
    assert done.returncode in (0, 1), done.stdout + done.stderr
    record = json.loads(result.read_text())
    for side in ("ours", "perf_analyzer"):
        (measured,) = record["rounds"][side]
        assert 0 < measured["p50_ms"] <= measured["p99_ms"]
        # Two in flight, so their number over their time is the rate (Little's law), and both tools mean the same.
        assert measured["requests_per_s"] == pytest.approx(2 / measured["p50_ms"] * 1000, rel=0.6)
    assert "ratio" in done.stdout


@pytest.mark.slow
def test_the_load_generator_is_measured_without_a_model(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    done = run("generator_capacity.py", "--seconds", "2", "--json", result)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    measured = json.loads(result.read_text())["measured"]
    assert set(measured) == {case.name for case in CASES}
    for found in measured.values():
        assert found["requests_per_core_second"] > 100
        # The answers come from the cache.
        assert sum(found["computed"].values()) == 0


@pytest.mark.slow
def test_a_setting_is_measured_twice(server: TritonServer, tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    words = ["--repository", server.repository, "--log", tmp_path / "log", "--seconds", "1", "--runs", "2"]
    done = run("repeatability.py", *words, "--users", "2", "--json", result)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    record = json.loads(result.read_text())
    assert [one["spread"]["items_per_s"]["n"] for one in record["records"]] == [2, 2]
    assert record["compared"]["items_per_s"]["exceeds_noise"] is bool(done.returncode)
    assert done.stdout.count("95 % confidence of 2 runs") == 2


def run(script: str, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / script), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
