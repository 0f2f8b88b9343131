"""Records of every kind and schema are read alike, and what is none is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tritonclip_bench.errors import RecordError
from tritonclip_bench.records import flatten, number, read_loads, read_record, text

RESULTS = {"total": {"items_per_s": 10.0, "latency_ms": {"p99": 5.0}}, "by_model": {}}
OLD = {"schema": 1, "measured_at": "2026-11-21", "plan": {"users": 4}, "results": RESULTS, "cost": None, "warnings": []}
NEW = {**OLD, "schema": 2, "kind": "load", "label": "new", "repeats": [RESULTS, RESULTS], "broken": None}
TRIAL = {"rate": 20.0, "offered": 19.0, "answered": 18.0, "items_per_s": 36.0, "p99_ms": 7.0, "verdict": "sustained"}
SLO = {
    "schema": 1,
    "plan": {"users": 16},
    "objective": {"p99_ms": 50},
    "sustained": TRIAL,
    "trials": [TRIAL],
    "cost": {"dollars_per_million": 3.0, "item": "images", "price": {"price_per_hour": 1.0}},
}
CURVE = {
    "schema": 2,
    "kind": "curve",
    "label": None,
    "server": {"triton": "2"},
    "records": [{**NEW, "label": "1 user"}],
}


def write(folder: Path, name: str, value: Any) -> Path:
    path = folder / name
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_a_record_of_schema_1_is_read_as_one_of_schema_2(tmp_path: Path) -> None:
    record = read_record(write(tmp_path, "old.json", OLD))
    assert (record["kind"], record["label"], record["broken"], record["spread"]) == ("load", None, None, None)
    assert record["repeats"] == [record["results"]]


def test_what_a_record_tells_is_kept(tmp_path: Path) -> None:
    [load] = read_loads([write(tmp_path, "new.json", NEW)])
    assert {key: load[key] for key in NEW} == NEW
    assert load["series"] == {"kind": "load", "label": "new", "broken": None, "warnings": []}


def test_a_record_without_label_is_called_as_its_file(tmp_path: Path) -> None:
    assert [load["label"] for load in read_loads([write(tmp_path, "l4.json", OLD)])] == ["l4"]


def test_collections_are_taken_apart_and_hand_down_what_they_have_in_common(tmp_path: Path) -> None:
    [load] = read_loads([write(tmp_path, "curve.json", CURVE)])
    assert load["label"] == "1 user"
    assert load["server"] == {"triton": "2"}
    assert (load["series"]["kind"], load["series"]["label"]) == ("curve", "curve")
    [load] = flatten({**CURVE, "label": "L4"}, "curve")
    assert load["label"] == "L4: 1 user"


def test_labels_differ(tmp_path: Path) -> None:
    paths = [write(tmp_path, name, CURVE) for name in ("a.json", "b.json")]
    assert [load["label"] for load in read_loads(paths)] == ["a: 1 user", "b: 1 user"]
    assert [load["label"] for load in read_loads([paths[0]] * 2)] == ["a: 1 user (1)", "a: 1 user (2)"]


def test_the_trials_of_a_search_are_loads_with_their_price(tmp_path: Path) -> None:
    record = read_record(write(tmp_path, "slo.json", {**SLO, "trials": [TRIAL, {**TRIAL, "items_per_s": 18.0}]}))
    first, second = flatten(record, "slo")
    assert first["label"] == "slo: 20.0 requests/s"
    assert first["plan"] == {"users": 16, "rate": 20.0}
    assert first["results"]["total"]["latency_ms"] == {"p99": 7.0}
    assert first["trial"]["verdict"] == "sustained"
    assert [load["cost"]["dollars_per_million"] for load in (first, second)] == [3.0, 6.0]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "no record of a benchmark"),
        ({"results": RESULTS}, "no record of a benchmark"),
        ({**OLD, "schema": True}, "no record of a benchmark"),
        ({**OLD, "schema": 3}, "has schema 3; this version reads 1 to 2"),
        ({**NEW, "kind": "movie"}, "of the kind 'movie'; what can be read is load, slo"),
        ({"schema": 1, "device": {}}, "of another benchmark"),
        ({**NEW, "results": {}}, "'load' without its measurements"),
        ({**NEW, "repeats": ["many"]}, "'load' without its measurements"),
        ({**NEW, "repeats": []}, "'load' without its measurements"),
        ({**NEW, "repeats": 3}, "'load' without its measurements"),
        ({**CURVE, "records": [{"label": "x"}]}, "'curve' without its measurements"),
        ({**SLO, "trials": None}, "'slo' without its measurements"),
    ],
)
def test_what_is_no_record_is_named(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(RecordError, match=message) as error:
        read_record(write(tmp_path, "given.json", value))
    assert "given.json" in str(error.value)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "latin.json").write_bytes(b'"\xe9"')
    for name, message in (("missing.json", "No such file"), ("", "Is a directory"), ("latin.json", "is not JSON")):
        with pytest.raises(RecordError, match=message):
            read_record(tmp_path / name)


def test_only_finite_numbers_and_texts_are_taken() -> None:
    value = {"a": {"b": 1.5, "nan": float("nan"), "huge": 10**400, "text": "7", "yes": True}}
    assert number(value, "a", "b") == 1.5
    assert [number(value, "a", key) for key in ("nan", "huge", "text", "yes", "missing")] == [None] * 5
    assert number(None, "a") is None
    assert text(value, "a", "text") == "7"
    assert text(value, "a", "b") is None
