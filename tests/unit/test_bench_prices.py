"""The prices of servers: the package's table, the user's own, how old they may be, and what is refused."""

import math
from datetime import date, timedelta
from pathlib import Path

import pytest

from tritonclip_bench.cost.price_file import PACKAGED, read_prices
from tritonclip_bench.cost.price_table import find_price, price_table
from tritonclip_bench.cost.prices import OLD_DAYS, Price, last_day
from tritonclip_bench.errors import PriceError

TODAY = date(2026, 5, 1)
GOOD = {
    "provider": '"Us"',
    "instance": '"box"',
    "region": '"cellar"',
    "price": "0.4",
    "currency": '"EUR"',
    "unit": '"hour"',
    "kind": '"on demand"',
    "date": '"2026-05"',
    "source": '"the bill"',
}


def write(path: Path, *servers: dict[str, str], common: str = "") -> Path:
    rows = ", ".join("{" + ", ".join(f"{key} = {value}" for key, value in server.items()) + "}" for server in servers)
    path.write_text(f"[[list]]\n{common}\nservers = [{rows}]\n")
    return path


def test_every_packaged_price_has_a_date_a_source_and_a_machine():
    table = read_prices(PACKAGED)
    assert {"g4dn.xlarge", "g6.xlarge", "g5.xlarge", "p5.48xlarge", "c7i.xlarge", "g2-standard-4"} <= set(table)
    assert {price.provider for price in table.values()} >= {"AWS", "GCP", "Azure"}
    for name, price in table.items():
        assert price.name == name
        assert price.source
        assert price.stale or last_day(price.date) is not None
        assert (price.gpu is None) == (price.gpus is None)
        assert price.gpu or price.vcpu


@pytest.mark.parametrize(
    ("instance", "per_hour", "vcpu"),
    [("g4dn.xlarge", 0.526, 4), ("g6.xlarge", 0.8048, 4), ("g5.xlarge", 1.006, 4), ("g6e.xlarge", 1.861, 4)],
)
def test_prices_of_the_projects_reference(instance, per_hour, vcpu):
    price = price_table()[instance]
    assert (price.price_per_hour, price.vcpu, price.currency) == (per_hour, vcpu, "USD")


def test_doubtful_prices_are_marked():
    assert "no date" in price_table()["hf-endpoint-t4"].stale
    assert price_table()["g6.xlarge"].stale is None


def test_prices_are_those_after_amazons_cut_of_june_2025():
    table = price_table()
    # By a third, a third and 44 %; what was listed before, to the dollar.
    for name, before, cut in (
        ("p4d.24xlarge", 32.77, 0.33),
        ("p4de.24xlarge", 40.97, 0.33),
        ("p5.48xlarge", 98.32, 0.44),
    ):
        assert table[name].price_per_hour == pytest.approx(before * (1 - cut), rel=0.01)
        assert table[name].stale is None


def test_spot_has_a_name_of_its_own():
    spot, on_demand = (find_price(f"Standard_NC4as_T4_v3{end}", None, "2026-10-01") for end in (":spot", ""))
    assert (spot.kind, on_demand.kind) == ("spot", "on demand")
    assert spot.instance == on_demand.instance
    assert spot.price_per_hour < on_demand.price_per_hour


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-05-01", date(2026, 5, 1)),
        ("2026-02", date(2026, 2, 28)),
        ("2024-02", date(2024, 2, 29)),
        ("2026-Q1", date(2026, 3, 31)),
        ("2026-Q4", date(2026, 12, 31)),
        ("undated", None),
    ],
)
def test_a_date_ends_when_its_last_day_does(text, expected):
    assert last_day(text) == expected


@pytest.mark.parametrize("text", ["", "2026", "2026-Q5", "2026-13", "2026-02-30", "spring", "20260501", "2026-W05-1"])
def test_other_dates_are_none(text):
    with pytest.raises(ValueError, match="is no date"):
        last_day(text)


@pytest.mark.parametrize(("days", "warns"), [(0, False), (OLD_DAYS, False), (OLD_DAYS + 1, True)])
def test_an_old_price_warns(days, warns):
    price = Price(1.0, (TODAY - timedelta(days=days)).isoformat(), "a bill", instance="box")
    doubts = price.doubts(TODAY)
    assert bool(doubts) == warns
    if warns:
        assert f"the price of box is {days} days old" in doubts[0]
        assert "--price-per-hour" in doubts[0]


def test_undated_and_stale_prices_warn():
    assert "has no date" in Price(1.0, "undated", "a page").doubts(TODAY)[0]
    stale = Price(1.0, "2025-01", "a page", stale="it was cut", instance="box").doubts(TODAY)
    assert [("STALE: it was cut" in stale[0]), ("days old" in stale[1])] == [True, True]


def test_a_given_price_overrides_the_table_and_keeps_the_machine():
    price = find_price("g6.xlarge", 0.5, today="2026-05-01", currency="EUR")
    assert (price.price_per_hour, price.currency, price.date, price.instance) == (0.5, "EUR", "2026-05-01", "g6.xlarge")
    assert (price.gpu, price.vcpu, price.kind, price.stale) == ("L4", 4, None, None)
    assert "--price-per-hour" in price.source
    assert price.doubts(TODAY) == []
    assert find_price("my own", 0.5, today="2026-05-01").instance == "my own"
    assert find_price("hf-endpoint-t4", 40.0, today="2026-05-01").doubts(TODAY) == []


def test_an_instance_is_looked_up_and_nothing_is_guessed():
    assert find_price("g6.xlarge", None, today="2026-05-01") == price_table()["g6.xlarge"]
    assert find_price(None, None, today="2026-05-01") is None


def test_an_unknown_instance_names_close_ones_and_the_list():
    message = r"'g6\.xlarg'; closest: g6\.xlarge.*`tritonclip bench cost --list` lists all \d+.*--price-per-hour"
    with pytest.raises(PriceError, match=message):
        find_price("g6.xlarg", None, today="2026-05-01")
    with pytest.raises(PriceError, match="'G6.XLARGE'; closest: g6.xlarge"):
        find_price("G6.XLARGE", None, today="2026-05-01")


@pytest.mark.parametrize("amount", [0.0, -1.0, math.nan, math.inf])
def test_a_price_is_above_zero(amount):
    with pytest.raises(PriceError, match="number above 0"):
        find_price(None, amount, today="2026-05-01")
    with pytest.raises(PriceError, match="number above 0"):
        find_price("g6.xlarge", amount, today="2026-05-01")


@pytest.mark.parametrize("currency", ["", "eur", "EURO", "E1R", "€"])
def test_a_currency_is_a_code(currency):
    with pytest.raises(PriceError, match="three capital letters"):
        Price(1.0, "2026-05-01", "a bill", currency=currency)


def test_a_price_given_for_a_listed_instance_keeps_its_currency(tmp_path):
    assert find_price("box", 2.0, "2026-05-01", prices=write(tmp_path / "own.toml", GOOD)).currency == "EUR"


def test_a_currency_is_never_converted():
    with pytest.raises(PriceError, match="in USD, not EUR, and nothing is converted"):
        find_price("g6.xlarge", None, today="2026-05-01", currency="EUR")
    assert find_price("g6.xlarge", None, today="2026-05-01", currency="USD").currency == "USD"
    with pytest.raises(PriceError, match="--currency EUR without a price"):
        find_price(None, None, today="2026-05-01", currency="EUR")


def test_a_price_survives_its_record():
    price = price_table()["p5.48xlarge"]
    assert Price.from_dict(price.to_dict()) == price
    old = {
        "price_per_hour": 0.5,
        "date": "undated",
        "source": "x",
        "stale": None,
        "instance": "a",
        "gpu": "T4",
        "gpus": 1,
    }
    assert Price.from_dict(old).currency == "USD"
    with pytest.raises(PriceError, match="a record's price cannot be read"):
        Price.from_dict({"date": "2026-05"})
    for wrong in ({"date": "soon"}, {"date": None}, {"price_per_hour": "1"}, {"currency": None}):
        with pytest.raises(PriceError, match="a record's price cannot be read"):
            Price.from_dict({**old, **wrong})


def test_own_prices_stand_beside_the_packages_and_replace_them(tmp_path):
    own = write(tmp_path / "own.toml", GOOD, {**GOOD, "instance": '"g6.xlarge"', "date": "2026-05-01"})
    table = price_table(own)
    assert set(table) == {*price_table(), "box"}
    assert (table["box"].price_per_hour, table["box"].currency, table["box"].vcpu) == (0.4, "EUR", None)
    assert (table["g6.xlarge"].price_per_hour, table["g6.xlarge"].date) == (0.4, "2026-05-01")
    assert find_price("box", None, "2026-05-02", prices=own).region == "cellar"


def test_a_server_has_what_its_list_has_unless_it_says_otherwise(tmp_path):
    common = "\n".join(f"{key} = {value}" for key, value in GOOD.items() if key != "instance")
    servers = [{"instance": '"a"'}, {"instance": '"b"', "price": "7", "gpu": '"L4"', "gpus": "2"}]
    table = read_prices(write(tmp_path / "own.toml", *servers, common=common))
    assert (table["a"].price_per_hour, table["b"].price_per_hour, table["b"].gpus) == (0.4, 7.0, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prize": "1"}, "the key 'prize' is unknown; allowed: provider, instance"),
        ({"price": "0"}, "price is 0; allowed: a number above 0"),
        ({"price": "-0.5"}, "price is -0.5; allowed: a number above 0"),
        ({"price": "nan"}, "price is nan"),
        ({"price": "true"}, "price is True"),
        ({"price": '"0.5"'}, "price is '0.5'"),
        ({"source": None}, "source is missing"),
        ({"source": '" "'}, "source is ' '; allowed: a text"),
        ({"date": None}, "date is missing"),
        ({"date": '"soon"'}, "date is 'soon'; allowed: 2026-05-01, 2026-05, 2026-Q2 or 'undated'"),
        ({"date": "2026-05-01T10:00:00"}, "date is datetime"),
        ({"currency": '"dollars"'}, "three capital letters"),
        ({"unit": '"month"'}, "unit is 'month'; allowed: 'hour'"),
        ({"kind": '"reserved"'}, "kind is 'reserved'; allowed: 'on demand' or 'spot'"),
        ({"vcpu": "0"}, "vcpu is 0; allowed: a whole number from 1"),
        ({"vcpu": "2.5"}, "vcpu is 2.5"),
        ({"gpu": '"L4"'}, "gpu and gpus go together"),
        ({"memory_gib": "0"}, "memory_gib is 0"),
    ],
)
def test_a_bad_price_names_the_server_the_key_and_what_is_allowed(tmp_path, change, message):
    entry = {key: value for key, value in {**GOOD, **change}.items() if value is not None}
    with pytest.raises(PriceError) as error:
        read_prices(write(tmp_path / "own.toml", entry))
    assert message in str(error.value)
    assert str(error.value).startswith(f"{tmp_path / 'own.toml'}, list 1, server box: ")


def test_a_price_that_stands_twice_is_refused(tmp_path):
    with pytest.raises(PriceError, match="server box stands there twice"):
        read_prices(write(tmp_path / "own.toml", GOOD, GOOD))
    both = [GOOD, {**GOOD, "kind": '"spot"'}]
    assert set(read_prices(write(tmp_path / "own.toml", *both))) == {"box", "box:spot"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds nothing; allowed: [[list]] tables"),
        ("prices = 3", "holds prices; allowed: [[list]] tables"),
        ("list = 3", "allowed: [[list]] tables"),
        ("[[list]]\nprice = 3", "list 1 has no servers"),
        ("[[list]]\nservers = []", "list 1 has no servers"),
        ("[[list]]\nservers = [3]", "list 1 has no servers"),
        ("[[list]\n", "is no TOML: "),
    ],
)
def test_what_is_no_file_of_prices(tmp_path, content, message):
    (tmp_path / "own.toml").write_text(content)
    with pytest.raises(PriceError) as error:
        read_prices(tmp_path / "own.toml")
    assert message in str(error.value)


def test_bytes_that_are_no_text_and_a_missing_file(tmp_path):
    (tmp_path / "own.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(PriceError, match="is no TOML"):
        read_prices(tmp_path / "own.toml")
    with pytest.raises(PriceError, match="cannot be read"):
        read_prices(tmp_path / "missing.toml")
