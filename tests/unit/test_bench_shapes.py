"""Loads that change: what the shapes say, and that the arrivals follow them."""

from __future__ import annotations

import argparse

import numpy as np
import pytest

from tritonclip_bench.traffic.arrivals import Arrivals
from tritonclip_bench.traffic.shapes import parse_shape
from tritonclip_client.main import main


@pytest.mark.parametrize(
    ("text", "levels"),
    [
        ("ramp:10-50", [10, 20, 30, 40, 50]),
        ("ramp:50-10", [50, 40, 30, 20, 10]),
        ("steps:1,2,3,4", [1, 2, 3, 4, 4]),
        ("users:4,8", [4, 4, 8, 8, 8]),
        ("spike:5-100:10s:2s", [5, 100, 5, 5, 100]),
    ],
)
def test_shapes_over_a_window_of_forty_seconds(text: str, levels: list[float]) -> None:
    shape = parse_shape(text)
    moments = [0, 9, 20, 30, 39] if text.startswith("spike") else [0, 10, 20, 30, 40]
    assert [shape.at(moment, 40) for moment in moments] == levels
    assert shape.peak == max(levels)
    # Before the window the load is that of its begin, and after it that of its end.
    assert shape.at(-5, 40) == shape.at(0, 40)
    assert shape.at(99, 40) == shape.at(40, 40)
    assert shape.is_open_loop == (not text.startswith("users"))


@pytest.mark.parametrize(
    "text",
    [
        *("ramp", "ramp:10", "ramp:10-", "ramp:0-10", "ramp:-5-10", "ramp:10-20-30", "ramp:10-20:5s"),
        *("spike:1-2", "spike:1-2:5s:5s", "spike:1-2:5s", "spike:1-2:soon:1s"),
        *("steps:", "steps:1,,2", "steps:1,nan", "users:1.5", "users:0", "wave:1-2", ""),
    ],
)
def test_what_is_no_shape(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="ramp:FROM-TO, spike:BASE-PEAK:EVERY:FOR, steps:A,B"):
        parse_shape(text)


def test_arrivals_follow_a_ramp() -> None:
    shape, duration_s = parse_shape("ramp:20-180"), 200.0
    arrivals = Arrivals(shape.peak, seed=1, begin_s=0.0)
    kept = []
    while (due_s := arrivals.next_s()) < duration_s:
        if arrivals.is_kept(shape.at(due_s, duration_s) / shape.peak):
            kept.append(due_s)
    counts, edges = np.histogram(kept, bins=20, range=(0, duration_s))
    expected = [shape.at(middle, duration_s) * 10 for middle in (edges[:-1] + edges[1:]) / 2]
    assert sum(counts) == pytest.approx(sum(expected), rel=0.03)
    # The deviation of a Poisson count is the root of its mean.
    assert np.abs((counts - expected) / np.sqrt(expected)).max() < 4


def test_a_constant_rate_draws_nothing_more() -> None:
    plain, asked = (Arrivals(10, seed=2, begin_s=0.0) for _ in "ab")
    for _ in range(100):
        assert asked.is_kept(1.0)
        assert plain.next_s() == asked.next_s()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rate", "5", "--shape", "ramp:1-5"], "a shape tells the rate: give one"),
        (["--images", ".", "--image-set", "web"], "--images and --image-set given"),
        (["--texts", "a", "--text-lengths", "short"], "--texts and --text-lengths given"),
        (["--mix", "clip=1", "--scenario", "text"], "--mix and --scenario text given"),
        (["--samples", "/no/such/folder/s.csv.gz"], "cannot be written"),
        (["--users", "2", "--processes", "3"], "--processes 3 exceeds --users 2; give fewer"),
        (["--shape", "users:1,5", "--processes", "2"], "--shape of 5 users over 2 processes; each needs as many"),
    ],
)
def test_what_excludes_each_other_is_refused_before_any_server_is_asked(
    capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["bench", "--address", "127.0.0.1:9", *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
