"""Scales, numbers and labels of the charts."""

from __future__ import annotations

import itertools
import random
import re

import pytest

from tritonclip_bench.results.page.charts import Bar, Line, Point, bars, distribution, lines, timeline
from tritonclip_bench.results.page.numbers import NUMBER, column, figure, money, plus_minus, share
from tritonclip_bench.results.page.svg import CHARACTER_PX, Canvas, linear, logarithmic, tick_text


@pytest.mark.parametrize("highest", [0.0, 0.003, 0.7, 1.0, 9.99, 10.0, 37.0, 1e5, 123456789.0])
@pytest.mark.parametrize("most", [3, 5])
def test_linear_axes_reach_from_0_to_a_round_number(highest: float, most: int) -> None:
    scale = linear(highest, 300, 20, most)
    assert scale(0) == 300
    assert scale.ticks[0] == 0
    assert scale.high == pytest.approx(scale.ticks[-1])
    assert highest <= scale.high * (1 + 1e-9)
    assert scale.high <= max(2.5 * highest, 1.0)
    assert 2 <= len(scale.ticks) <= most + 1


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (4.6, 180.0), (0.02, 3e4), (9.0, 11.0), (1e-3, 1e9)])
def test_logarithmic_axes_hold_their_values(low: float, high: float) -> None:
    scale = logarithmic(low, high, 0, 100, 6)
    assert 0 < scale(low) < 100
    assert scale(low) <= scale(high) < 100
    assert len(scale.ticks) <= 6
    assert all(0 <= scale(tick) <= 100 for tick in scale.ticks)
    # Equal factors are equal lengths.
    assert scale(2 * low) - scale(low) == pytest.approx(scale(8 * low) - scale(4 * low))


@pytest.mark.parametrize(
    ("value", "told"),
    [
        *((0, "0"), (0.01234, "0.0123"), (1.2345, "1.23"), (12.345, "12.3"), (123.45, "123"), (1234.5, "1,234")),
        *((5_340_355, "5.34 million"), (-2.5, "-2.50"), (None, "–")),
    ],
)
def test_single_numbers(value: float | None, told: str) -> None:
    assert figure(value) == told


def test_numbers_of_a_column_have_the_same_decimals() -> None:
    assert column([1.234, 100.0, None]) == ["1.2", "100.0", "–"]
    assert column([0.1234, 0.5]) == ["0.123", "0.500"]
    assert column([1.0, 2000.0]) == ["1", "2,000"]
    assert column([12345.678, 1.5]) == ["12,346", "2"]
    assert column([]) == []
    assert column([0.0, None]) == ["0", "–"]


@pytest.mark.parametrize("told", ["$0.19", "€1,234.50", "5.00 CHF", "-2.5", "1,234", "0"])
def test_what_is_aligned_as_a_number(told: str) -> None:
    assert NUMBER.fullmatch(told)
    assert not NUMBER.fullmatch(f"{told} or so")


def test_a_mean_is_as_fine_as_its_spread() -> None:
    assert plus_minus(780.3, 9.72) == ("780", "10")
    assert plus_minus(31.24, 0.742) == ("31.2", "0.7")
    assert plus_minus(801.0, 0.04) == ("801.00", "0.04")
    assert plus_minus(801.0, 0.0) == ("801", "0")


def test_money_and_shares() -> None:
    assert [money(value, "USD") for value in (0.1868, 12.3, 1234.5, None)] == ["$0.19", "$12.30", "$1,234.50", "–"]
    assert share(0.911) == "91.1 %"
    assert [tick_text(value) for value in (0.5, 20.0, 1500.0, 2e6)] == ["0.5", "20", "1,500", "2M"]


def test_labels_cover_neither_points_nor_each_other() -> None:
    dice = random.Random(1)
    canvas = Canvas(520, 320)
    spots = [(dice.uniform(60, 500), dice.uniform(40, 280)) for _ in range(40)]
    for x, y in spots:
        canvas.dot(x, y, "c1", "hint")
    placed = sum(canvas.label(x, y, "16 users") for x, y in spots)
    svg = str(canvas.svg("n", "t", "d"))
    found = [tuple(map(float, at)) for at in re.findall(r'<text class="label" x="([\d.-]+)" y="([\d.-]+)"', svg)]
    assert len(found) == placed > 20
    wide = 8 * CHARACTER_PX
    for (x1, y1), (x2, y2) in itertools.combinations(found, 2):
        assert abs(x1 - x2) >= wide - 0.2 or abs(y1 - y2) >= 12 - 0.2
    assert all(0 <= x <= 520 - wide for x, _ in found)


def texts(canvas: Canvas) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", str(canvas.svg("n", "t", "d")))


def test_a_latency_axis_is_logarithmic_where_values_are_far_apart() -> None:
    def drawn(*values: float) -> list[str]:
        return texts(lines(520, [Line([Point(i, y, "", "") for i, y in enumerate(values, 1)], "c1")], "x", "y"))

    assert "0" in drawn(10, 20)[:3]
    assert "1,000" in drawn(2, 1000)


def test_percentiles_are_marked_where_they_are() -> None:
    edges = [1.0, 10.0, 100.0, 1000.0]
    svg = str(distribution(520, edges, [0, 5, 5], [("p50", 100.0)]).svg("n", "t", "d"))
    [(x1, x2)] = re.findall(r'<line class="mark" x1="([\d.]+)" y1="[\d.]+" x2="([\d.]+)"', svg)
    boxes = [float(x) for x in re.findall(r'<rect class="fill c1" x="([\d.]+)"', svg)]
    # The empty first bin is left out; the second one's edge is at 100 ms.
    assert len(boxes) == 2
    assert float(x1) == float(x2) == pytest.approx(boxes[1], abs=0.2)
    assert "p50 100 ms" in svg


def test_a_second_without_answer_is_a_gap() -> None:
    canvas = timeline(520, [0, 1, 2, 3, 4], [("c1", [5, 5, 5, 5, 5])], [10.0, 12.0, None, 12.0, 10.0])
    svg = str(canvas.svg("n", "t", "d"))
    assert svg.count('<polyline class="line c4"') == 2
    assert svg.count('<polyline class="line c1"') == 1


def test_bars_are_as_long_as_their_parts() -> None:
    svg = str(bars(520, [Bar("a", "4", [("s1", "x", 1.0), ("s2", "y", 3.0)])], "ms").svg("n", "t", "d"))
    widths = [float(width) for width in re.findall(r'<rect class="fill seam s\d" .*? width="([\d.]+)"', svg)]
    assert widths[1] == pytest.approx(3 * widths[0], rel=0.01)


def test_long_labels_are_cut_on_a_phone() -> None:
    told = texts(bars(328, [Bar("a name that is much too long for a phone", "31.2 ± 0.7 · 1.00 x", [])] * 2, "ms"))
    assert any(text.startswith("a name that") and text.endswith("…") for text in told)
