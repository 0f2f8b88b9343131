"""The arithmetic of a load test: percentiles, the measured window, cost, durations."""

import argparse
import math
import random

import pytest

from tritonclip_bench.errors import PriceError
from tritonclip_bench.latency import summarize_ms
from tritonclip_bench.options import count, positive_seconds, seconds, settle_seed
from tritonclip_bench.prices import Price, dollars_per_million, find_price, price_table
from tritonclip_bench.recorder import Recorder


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


def test_cost_is_the_price_of_the_time_that_a_million_items_take():
    # 1000 a second: a million in 1000 s, which is 1000 / 3600 of an hour.
    assert dollars_per_million(1000.0, 3.6) == pytest.approx(1.0)
    # The project's reference gives $0.51 for 286 a second at the price of a T4.
    assert dollars_per_million(286.0, price_table()["g4dn.xlarge"].price_per_hour) == pytest.approx(0.51, abs=0.005)


def test_a_server_that_served_nothing_has_no_cost():
    with pytest.raises(PriceError, match="rate above 0"):
        dollars_per_million(0.0, 1.0)


def test_every_price_has_a_date_and_a_source():
    table = price_table()
    assert {"g4dn.xlarge", "g6.xlarge", "g5.xlarge", "p5.48xlarge"} <= set(table)
    for name, price in table.items():
        assert price.instance == name
        assert price.date
        assert price.source
        assert price.gpu
        assert price.gpus >= 1


def test_doubtful_prices_are_marked():
    table = price_table()
    assert table["p5.48xlarge"].stale
    assert table["g6.xlarge"].stale is None


def test_a_given_price_overrides_the_table():
    price = find_price("g6.xlarge", 0.5, today="2026-05-01")
    assert (price.price_per_hour, price.date, price.instance) == (0.5, "2026-05-01", "g6.xlarge")
    assert "--price-per-hour" in price.source


def test_an_instance_is_looked_up_and_nothing_is_guessed():
    assert find_price("g6.xlarge", None, today="2026-05-01") == price_table()["g6.xlarge"]
    assert find_price(None, None, today="2026-05-01") is None


def test_an_unknown_instance_lists_the_known_ones():
    with pytest.raises(PriceError, match=r"'g7\.huge'.*g4dn\.xlarge.*p5\.48xlarge.*--price-per-hour"):
        find_price("g7.huge", None, today="2026-05-01")


@pytest.mark.parametrize("dollars", [0.0, -1.0, math.nan, math.inf])
def test_a_price_is_above_zero(dollars):
    with pytest.raises(PriceError, match="number above 0"):
        Price(dollars, "2026-05-01", "a test")


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
