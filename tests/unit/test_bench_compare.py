"""Two records against each other: differences, noise, and the gate for CI."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import bench_records as made
from tritonclip_bench.errors import BenchError
from tritonclip_bench.records import flatten
from tritonclip_bench.results.compare import Comparison, compare, pairs
from tritonclip_client.main import main

QUIET = (99.0, 100.0, 101.0)
SLOWER = (89.0, 90.0, 91.0)
NOISY = (70.0, 90.0, 110.0)


def compared(before: Any, after: Any) -> Comparison:
    return compare(flatten(before, "A")[0], flatten(after, "B")[0])


def of(comparison: Comparison, metric: str) -> Any:
    return next(change for change in comparison.changes if change.metric == metric)


def run(tmp_path: Path, before: Any, after: Any, *options: str) -> int:
    for name, record in (("a.json", before), ("b.json", after)):
        (tmp_path / name).write_text(json.dumps(record))
    return main(["bench", "compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"), *options])


def test_a_difference_with_its_interval_and_verdict() -> None:
    found = compared(made.load(items_per_s=QUIET), made.load(items_per_s=SLOWER))
    change = of(found, "items/s")
    assert (change.before, change.after) == (100.0, 90.0)
    assert change.difference.value == pytest.approx(-10)
    # Welch's t of 4 degrees of freedom, 2.776, times the error of the difference, sqrt(1/3 + 1/3).
    assert change.difference.half_width == pytest.approx(2.776 * (2 / 3) ** 0.5, rel=1e-3)
    assert change.verdict == "beyond the noise"
    assert of(found, "cost per million").difference.relative == pytest.approx(1 / 9, rel=1e-3)
    assert of(compared(made.load(items_per_s=QUIET), made.load(items_per_s=NOISY)), "items/s").verdict == (
        "within the noise"
    )


def test_one_run_on_a_side_gives_no_verdict() -> None:
    found = compared(made.load(items_per_s=QUIET), made.load(items_per_s=(50.0,)))
    assert {change.verdict for change in found.changes} == {"the noise is unknown"}
    assert of(found, "items/s").difference.value == -50


def test_runs_that_broke_are_not_counted() -> None:
    broken = made.load(items_per_s=(100.0, 101.0, 3.0), broken="died")
    broken["repeats"][2]["broken"] = "died"
    found = compared(made.load(), broken)
    assert of(found, "items/s").after == 100.5
    assert "the second record is not whole: died" in found.warnings


@pytest.mark.parametrize(
    ("path", "value", "warning"),
    [
        (("client_machine", "cpu"), "Another", "the machine differs: cpu A CPU"),
        (("client_versions", "numpy"), "2.0", "the version of numpy differs: 1.26.4 and 2.0"),
        (("client_versions", "locust"), "3", "the version of locust differs: unknown and 3"),
        (
            ("server", "fingerprint"),
            "cd34" * 16,
            "the model (its fingerprint) differs: ab12ab12ab12… and cd34",
        ),
        (("server", "triton"), "2.60", "Triton differs: 2.51.0 and 2.60"),
        (("plan", "scenario"), "text", "the scenario differs: image and text"),
        (("plan", "users"), 16, "the number of users differs: 8 and 16"),
        (("plan", "rate"), 20.0, "the rate differs: unknown and 20.0"),
        (("plan", "labels"), 100, "the number of labels differs: 10 and 100"),
        (("plan", "repeat_texts"), True, "whether texts come again differs: unknown and True"),
        (("plan", "texts"), "long", "the set of texts differs: unknown and long"),
    ],
)
def test_what_else_differs_is_told(path: tuple[str, ...], value: Any, warning: str) -> None:
    after = made.load()
    after[path[0]][path[1]] = value
    [told] = compared(made.load(), after).warnings
    assert told.startswith(warning)
    assert compared(made.load(), made.load()).warnings == []


def test_the_command_tells_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    assert run(tmp_path, made.load("old"), made.load("new", SLOWER), "--json", str(out)) == 0
    told = capsys.readouterr().out
    assert "A: old\nB: new" in told
    assert "-10.0 (-10.0%)  -12.3 to -7.7  beyond the noise" in told
    [comparison] = json.loads(out.read_text())["comparisons"]
    assert comparison["labels"] == ["old", "new"]
    assert comparison["changes"][0]["verdict"] == "beyond the noise"
    assert comparison["changes"][0]["difference"]["exceeds_noise"] is True


@pytest.mark.parametrize(
    ("after", "limit", "status"),
    [(SLOWER, "5%", 1), (SLOWER, "0.05", 1), (SLOWER, "11%", 0), (NOISY, "5%", 0), ((109.0, 110.0, 111.0), "5%", 0)],
)
def test_the_gate_for_ci(tmp_path: Path, after: tuple[float, ...], limit: str, status: int) -> None:
    assert run(tmp_path, made.load(), made.load(items_per_s=after), "--fail-if-slower", limit) == status


def test_the_gate_does_not_pass_what_it_cannot_judge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, made.load(), made.load(items_per_s=(100.0,)), "--fail-if-slower", "5%") == 2
    assert "measure both sides with --runs 3 or more" in capsys.readouterr().err
    assert run(tmp_path, made.load(), made.load(items_per_s=(100.0,))) == 0
    assert "no verdict" in capsys.readouterr().out


def test_in_an_open_loop_slower_answers_are_slower(tmp_path: Path) -> None:
    plan = {**made.load()["plan"], "rate": 100.0}
    before, after = made.load(plan=plan), made.load(plan=plan, p50=20.0)
    assert run(tmp_path, before, after, "--fail-if-slower", "5%") == 1
    assert run(tmp_path, after, before, "--fail-if-slower", "5%") == 0
    assert run(tmp_path, made.load(), made.load(p50=20.0), "--fail-if-slower", "5%") == 0


def test_curves_are_compared_step_by_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shorter = made.curve()
    del shorter["records"][0]
    assert run(tmp_path, made.curve(), shorter) == 0
    told = capsys.readouterr().out
    assert [line for line in told.splitlines() if line.startswith("A: ")] == ["A: 2 users", "A: 4 users"]
    assert "1 runs of one side have no counterpart" in told
    for record in shorter["records"]:
        record["plan"]["batch_size"] = 4
    assert run(tmp_path, made.curve(), shorter) == 2
    assert "compare records of the same load" in capsys.readouterr().err


def test_costs_in_different_currencies_are_not_compared() -> None:
    euros = made.load()
    euros["cost"]["price"]["currency"] = "EUR"
    found = compared(made.load(), euros)
    assert [change.metric for change in found.changes] == ["items/s", "p50 ms", "p99 ms"]
    assert "the currency differs: USD and EUR" in found.warnings


@pytest.mark.parametrize("kind", ["baselines", "tune"])
def test_sides_and_settings_are_compared_with_themselves(kind: str) -> None:
    sides = {**made.baselines(), "kind": kind}
    others = {**sides, "label": "later", "records": sides["records"][::-1]}
    found = pairs(flatten(sides, "A"), flatten(others, "B"))
    assert [(first["label"], second["label"]) for first, second in found] == [
        (name, f"later: {name}") for name in ("ours", "theirs", "one process")
    ]


def test_the_gate_says_where_nothing_was_answered() -> None:
    before, after = made.load(), made.load()
    for record in (before, after):
        record["plan"]["rate"] = 20.0
    for results in after["repeats"]:
        results["total"]["latency_ms"] = None
    with pytest.raises(BenchError, match="p99 ms was not measured on both sides"):
        compared(before, after).is_slower(0.05)
