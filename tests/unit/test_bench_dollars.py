"""From a rate and a price to dollars per million, items per dollar, and what is said about them."""

from dataclasses import replace

import pytest

from tritonclip_bench.cost.dollars import (
    Machine,
    cost,
    hourly,
    items_per_dollar,
    line,
    money,
    number,
    priced_as_if,
)
from tritonclip_bench.cost.price_table import price_table
from tritonclip_bench.cost.prices import Price, dollars_per_million
from tritonclip_bench.errors import PriceError

SPREAD = {"n": 5, "mean": 1000.0, "low": 950.0, "high": 1050.0, "half_width": 100.0, "relative": 0.1}
EURO = Price(3.6, "2999-01-01", "a bill", currency="EUR")


def test_cost_is_the_price_of_the_time_that_a_million_items_take():
    # 1000 a second: a million in 1000 s, which is 1000 / 3600 of an hour.
    assert dollars_per_million(1000.0, 3.6) == pytest.approx(1.0)
    assert items_per_dollar(1000.0, 3.6) == pytest.approx(1e6)
    # The project's reference gives $0.51 for 286 a second at the price of a T4.
    assert dollars_per_million(286.0, price_table()["g4dn.xlarge"].price_per_hour) == pytest.approx(0.51, abs=0.005)


def test_a_server_that_served_nothing_has_no_cost():
    with pytest.raises(PriceError, match="rate above 0"):
        dollars_per_million(0.0, 1.0)
    assert cost(0.0, EURO, "images") is None
    assert cost(1.0, None, "images") is None


def test_the_whole_instance_is_counted_and_not_one_of_its_gpus():
    eight = price_table()["p4d.24xlarge"]
    assert eight.gpus == 8
    assert cost(1000.0, eight, "images")["dollars_per_million"] == pytest.approx(eight.price_per_hour / 3.6)


def test_the_cost_keeps_its_currency_and_its_price():
    found = cost(1000.0, EURO, "texts")
    assert (found["currency"], found["item"], found["price"]["price_per_hour"]) == ("EUR", "texts", 3.6)
    assert found["dollars_per_million"] == pytest.approx(1.0)
    assert found["items_per_dollar"] == pytest.approx(1e6)
    assert (found["spread"], found["priced_as_if"], found["warnings"]) == (None, None, [])
    assert line(found) == "cost: 1 million texts per EUR, €1.00 per million at €3.6 an hour [2999-01-01, a bill]"


def test_the_spread_of_the_rate_becomes_one_of_the_cost():
    found = cost(1010.0, EURO, "images", SPREAD)
    assert found["spread"]["dollars_per_million"] == pytest.approx([1000 / 1100, 1000 / 900])
    assert found["spread"]["items_per_dollar"] == pytest.approx([0.9e6, 1.1e6])
    assert "per million (€0.91 to €1.11, 95 % confidence of 5 runs) at" in line(found)


def test_a_rate_that_may_be_zero_has_a_cost_without_an_end():
    found = cost(1000.0, EURO, "images", {**SPREAD, "half_width": 1000.0})
    assert found["spread"]["dollars_per_million"] == [pytest.approx(0.5), None]
    assert found["spread"]["items_per_dollar"][0] == 0.0
    assert "€0.50 to no upper bound" in line(found)


@pytest.mark.parametrize("spread", [None, {}, {**SPREAD, "n": 1, "half_width": None, "relative": None}])
def test_one_run_tells_no_spread(spread):
    assert cost(1000.0, EURO, "images", spread)["spread"] is None


def test_an_old_price_warns_in_the_cost():
    old = replace(EURO, date="2001-01-01", instance="box")
    assert "the price of box is" in cost(1.0, old, "images")["warnings"][0]


L4 = price_table()["g6.xlarge"]


@pytest.mark.parametrize(
    ("price", "machine", "told"),
    [
        (L4, Machine(4, ["NVIDIA L4"]), None),
        (L4, Machine(2, []), "one g6.xlarge (4 vCPU, L4); it has 2 vCPU, no GPU"),
        (L4, Machine(4, []), "it has 4 vCPU, no GPU"),
        (L4, Machine(8, ["NVIDIA L4"]), "it has 8 vCPU, NVIDIA L4"),
        (L4, Machine(4, ["NVIDIA H200"]), "it has 4 vCPU, NVIDIA H200"),
        (L4, Machine(4, ["NVIDIA L4", "NVIDIA L4"]), "it has 4 vCPU, NVIDIA L4, NVIDIA L4"),
        (price_table()["g4dn.xlarge"], Machine(4, ["Tesla T4"]), None),
        (price_table()["g6.12xlarge"], Machine(48, ["NVIDIA L4"]), "(48 vCPU, 4 x L4)"),
        (price_table()["c7i.large"], Machine(2, []), None),
        (price_table()["c7i.large"], Machine(2, ["NVIDIA L4"]), "(2 vCPU, no GPU); it has 2 vCPU, NVIDIA L4"),
        (price_table()["hf-endpoint-t4"], Machine(2, []), "one hf-endpoint-t4 (T4)"),
        (EURO, Machine(2, ["NVIDIA L4"]), None),
    ],
)
def test_another_machine_than_the_priced_one_is_said(price, machine, told):
    found = priced_as_if(price, machine)
    assert found is None if told is None else f"priced as if it were {told}" in found or told in found


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0.19, "$0.19"),
        (0.1, "$0.10"),
        (12.345, "$12.35"),
        (1234.5, "$1,234.50"),
        (0.0421, "$0.042"),
        (0.00081, "$0.00081"),
    ],
)
def test_money(amount, text):
    assert money(amount, "USD") == text


def test_money_of_other_currencies():
    assert [money(1.5, code) for code in ("EUR", "GBP", "CHF")] == ["€1.50", "£1.50", "1.50 CHF"]
    assert hourly(L4) == "$0.8048"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (5_312_345, "5.31 million"),
        (5_300_000, "5.3 million"),
        (83_012, "83,000"),
        (640, "640"),
        (0.4, "0"),
        (2.5e9, "2.5 billion"),
        (999_900, "1 million"),
    ],
)
def test_counts_in_words(value, text):
    assert number(value) == text
