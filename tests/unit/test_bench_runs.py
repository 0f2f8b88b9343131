"""Every raw run as a row of CSV."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

import bench_records as made
from tritonclip_bench.errors import BenchError
from tritonclip_bench.records import flatten_all
from tritonclip_bench.results.runs import COLUMNS, run_rows, write_csv

DOC = Path(__file__).parents[2] / "docs" / "report.md"


def rows(tmp_path: Path, *records: object) -> list[dict[str, str]]:
    write_csv(tmp_path / "runs.csv", flatten_all((record, "name") for record in records))
    with (tmp_path / "runs.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_one_row_a_run(tmp_path: Path) -> None:
    found = rows(tmp_path, made.load("three"), made.curve())
    assert list(found[0]) == list(COLUMNS)
    assert [(row["label"], row["run"]) for row in found[:4]] == [*(("three", n) for n in "123"), ("1 users", "1")]
    first = found[0]
    assert first["items_per_s"] == "99.0"
    assert float(first["cost_per_million"]) == pytest.approx(1e6 / 99 * 0.5 / 3600)
    assert float(first["items_per_currency_unit"]) == pytest.approx(99 * 3600 / 0.5)
    assert (first["users"], first["rate_per_s"], first["currency"]) == ("8", "", "USD")
    assert first["fingerprint"] == "ab12" * 16


def test_what_an_old_record_lacks_is_empty(tmp_path: Path) -> None:
    [row] = rows(tmp_path, made.old())
    assert (row["label"], row["run"], row["items_per_s"]) == ("name", "1", "100.0")
    assert {row[name] for name in ("price_per_hour", "currency", "cost_per_million", "rejected", "broken")} == {""}


def test_text_is_no_formula_for_a_spreadsheet(tmp_path: Path) -> None:
    found = rows(tmp_path, made.load('=1+1,"x"\n'), made.load("@SUM(A1)"))
    assert found[0]["label"] == '\'=1+1,"x"\n'
    assert found[3]["label"] == "'@SUM(A1)"


def test_every_column_is_filled_by_some_record_and_documented() -> None:
    load = made.load(plan={**made.load()["plan"], "rate": 20.0})
    load["repeats"][0]["broken"] = "half"
    [first, *_] = run_rows(flatten_all([(load, "name")]))
    assert set(first) == set(COLUMNS)
    assert [name for name, value in first.items() if value is None] == []
    documented = re.findall(r"^\| `(\w+)` \| (.*) \|$", DOC.read_text(encoding="utf-8"), re.MULTILINE)
    assert dict(documented) == dict(COLUMNS)
    assert [name for name, _ in documented] == list(COLUMNS)


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="cannot be written"):
        write_csv(tmp_path / "missing" / "runs.csv", [])


def test_a_spot_price_is_told_from_that_on_demand(tmp_path: Path) -> None:
    spot = made.load()
    spot["cost"]["price"]["kind"] = "spot"
    [first, *_] = rows(tmp_path, spot)
    assert first["instance"] == "g4dn.xlarge:spot"
