"""The arithmetic of a load test: percentiles, the measured window, durations."""

import argparse
import math
import random

import pytest

from tritonclip_bench.cli_types import count, positive_seconds, seconds
from tritonclip_bench.load.latency import summarize_ms
from tritonclip_bench.load.recorder import Recorder
from tritonclip_bench.traffic.options import settle_seed


def test_percentiles_are_the_nearest_rank_of_the_raw_times():
    times = [random.Random(1).expovariate(1 / 50) for _ in range(1237)]
    summary = summarize_ms(times)
    ordered = sorted(times)
    for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
        assert summary[name] == ordered[math.ceil(share * len(times)) - 1]
    assert summary["max"] == ordered[-1]
    assert summary["mean"] == pytest.approx(sum(times) / len(times))


def test_percentiles_are_not_rounded_to_buckets():
    assert summarize_ms([147.3, 147.4]) == {
        "mean": pytest.approx(147.35),
        "p50": 147.3,
        "p95": 147.4,
        "p99": 147.4,
        "max": 147.4,
    }


def test_no_times_have_no_percentiles():
    assert summarize_ms([]) is None


@pytest.mark.parametrize(
    ("text", "expected"), [("30", 30), ("30s", 30), ("5m", 300), ("1h30m", 5400), ("1h2m3s", 3723), ("0", 0)]
)
def test_durations(text, expected):
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "abc", "-3s", "1.5s", "3 s", "s", "30x", "5m1h"])
def test_bad_durations_name_what_was_given(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is not a duration; give for example 30s"):
        seconds(text)


@pytest.mark.parametrize("text", ["0", "0s", "0m"])
def test_a_measurement_takes_time(text):
    with pytest.raises(argparse.ArgumentTypeError, match="at least 1s"):
        positive_seconds(text)


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many", ""])
def test_counts_start_at_one(text):
    with pytest.raises(argparse.ArgumentTypeError, match="users; give a whole number from 1"):
        count("users")(text)
    assert count("users")("12") == 12


def test_a_seed_is_kept_and_a_missing_one_is_new_each_time():
    assert settle_seed(7) == 7
    assert len({settle_seed(None) for _ in range(20)}) > 1


def test_only_the_window_is_recorded():
    recorder = Recorder()
    recorder.add("embed_image", 999.0, 8, None)
    recorder.begin()
    recorder.add("embed_image", 10.0, 8, None)
    recorder.add("embed_image", 20.0, 8, None)
    recorder.add("embed_text", 1.0, 4, None)
    recorder.end()
    recorder.add("embed_image", 999.0, 8, None)
    results = recorder.results()
    assert results["total"]["requests"] == 3
    assert results["total"]["items"] == 20
    assert results["total"]["latency_ms"]["max"] == 20.0
    assert results["by_model"]["embed_text"]["items"] == 4
    assert results["total"]["items_per_s"] == pytest.approx(20 / results["window_s"])


def test_a_second_window_is_a_measurement_of_its_own():
    recorder = Recorder()
    for latency_ms in (10.0, 30.0):
        recorder.begin()
        recorder.add("embed_image", latency_ms, 8, None)
        recorder.end()
        assert recorder.results()["total"]["latency_ms"]["max"] == latency_ms
        assert recorder.results()["total"]["requests"] == 1


def test_failures_count_in_no_rate_and_no_percentile():
    recorder = Recorder()
    recorder.begin()
    recorder.add("embed_image", 0.1, 8, ValueError("refused"))
    recorder.add("embed_image", 30.0, 8, None)
    recorder.add("embed_image", 0.1, 8, ValueError("refused"))
    recorder.end()
    total = recorder.results()["total"]
    assert (total["requests"], total["items"], total["failures"]) == (1, 8, 2)
    assert total["failure_reasons"] == {"refused": 2}
    assert total["latency_ms"]["p50"] == 30.0


def test_a_run_without_a_window_has_no_results():
    recorder = Recorder()
    recorder.end()
    assert recorder.results() is None


def test_the_load_generators_own_cpu_use_is_measured():
    recorder = Recorder()
    recorder.begin()
    # More than a tick of the kernel's clock.
    assert sum(i * i for i in range(1_000_000)) > 0
    recorder.end()
    results = recorder.results()
    assert results["client_cpu_cores"] > 0.05
    assert 0 <= results["machine_cpu_share"] <= 1.0
