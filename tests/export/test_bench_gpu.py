"""`tritonclip bench gpu` on a repository, on this machine's CPU: from the command to the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fake_tensorrt import FakeToolkit
from tritonclip_bench.gpu import run as runs
from tritonclip_bench.gpu.run import Plan, run
from tritonclip_bench.gpu.series import Effort
from tritonclip_client.main import main
from tritonclip_export.engine.build import EngineRequest, build

SHORT = ("--device", "cpu", "--batches", "1,3", "--rounds", "2", "--seconds", "0.01")


@pytest.fixture(autouse=True)
def few_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device's own peaks are not what is tested here."""
    monkeypatch.setattr("tritonclip_bench.gpu.peaks.SIZES", {"cpu": (128, 256)})
    monkeypatch.setattr("tritonclip_bench.gpu.peaks.COPY_BYTES", {"cpu": 2**22})


def plan(repository: Path, out: Path, runtimes: list[str]) -> Plan:
    return Plan("cpu", repository, None, "", runtimes, Effort([1, 3], 2, 0.01), None, out)


def series(record: dict[str, Any], runtime: str) -> list[dict[str, Any]]:
    return [one for one in record["series"] if one["runtime"] == runtime]


def test_a_repository_is_measured_and_written(demo_repository: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "result.json"
    assert main(["bench", "gpu", "--repository", str(demo_repository), *SHORT, "--json", str(out)]) == 0
    record = json.loads(out.read_text(encoding="utf-8"))
    assert record["complete"]
    assert list(record["towers"]) == ["image", "text, 16 ids", "text, 32 ids", "text, 77 ids"]
    # A text of 77 ids costs more than its share of one of 16: attention grows with the square.
    costs = [record["towers"][name]["flops"] for name in list(record["towers"])[1:]]
    assert costs[2] / costs[0] > 77 / 16
    assert {one["status"] for one in series(record, "onnxruntime")} == {"measured"}
    assert {one["status"] for one in series(record, "pytorch")} == {"skipped"}
    for one in series(record, "onnxruntime-copies"):
        assert [point["batch"] for point in one["points"]] == [1, 3]
        assert all(point["cosine_min"] > 0.99999 and point["items_per_s"]["lowest"] > 0 for point in one["points"])
    assert set(record["peaks"]["flops"]) == {"float32"}
    assert {roof["bound"] for roof in record["roofline"]} <= {"compute", "memory"}
    assert str(tmp_path) not in out.read_text()
    printed = capsys.readouterr().out
    assert "FLOP/byte" in printed
    assert printed.count("a repository has no PyTorch model") == 1


def test_engines_run_through_the_toolkit_that_built_them(repository: Path, tmp_path: Path) -> None:
    """TensorRT is played by ONNX Runtime."""
    toolkit = FakeToolkit()
    build(EngineRequest(repository), toolkit)
    out = tmp_path / "result.json"
    toolkit.shapes.clear()
    assert run(plan(repository, out, ["tensorrt"]), toolkit) == 0
    found = series(json.loads(out.read_text()), "tensorrt")
    assert [one["status"] for one in found] == ["measured"] * 4
    assert {shape[0] for shape in toolkit.shapes} == {1, 3}


def test_an_engine_that_answers_wrongly_fails_the_run(repository: Path, tmp_path: Path, capsys) -> None:
    toolkit = FakeToolkit()
    build(EngineRequest(repository), toolkit)
    toolkit.spoil = lambda embeddings: -embeddings
    out = tmp_path / "result.json"
    assert run(plan(repository, out, ["tensorrt", "onnxruntime"]), toolkit) == 1
    record = json.loads(out.read_text())
    assert all(one["points"] == [] and "a wrong answer" in one["note"] for one in series(record, "tensorrt"))
    assert {one["status"] for one in series(record, "onnxruntime")} == {"measured"}
    assert "a wrong answer" in capsys.readouterr().out


def test_an_interruption_keeps_what_was_measured(
    demo_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    measure = runs.run_series

    def interrupted_at_texts(one: Any, case: Any, *others: Any) -> None:
        if case.tower == "text":
            raise KeyboardInterrupt
        measure(one, case, *others)

    monkeypatch.setattr(runs, "run_series", interrupted_at_texts)
    out = tmp_path / "result.json"
    assert run(plan(demo_repository, out, ["onnxruntime"]), FakeToolkit()) == 130
    record = json.loads(out.read_text())
    assert not record["complete"]
    assert [point["batch"] for point in record["series"][0]["points"]] == [1, 3]
    assert "CUT SHORT" in capsys.readouterr().out
