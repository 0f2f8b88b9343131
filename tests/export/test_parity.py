"""The gate must close on a wrong graph, and say which stage lost the accuracy."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tiny_clip import write_tiny_checkpoint
from tritonclip_client.main import main
from tritonclip_export import pipeline
from tritonclip_export.errors import ParityError
from tritonclip_export.parity.comparison import Comparison, ParityReport
from tritonclip_export.pipeline import ExportRequest, export
from tritonclip_export.towers import onnx_export


def unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


def test_comparison_measures_the_worst_row() -> None:
    reference = unit(np.eye(3))
    given = unit(np.array([[1, 0, 0], [0, 1, 0], [0.1, 0, 1]]))
    comparison = Comparison.of("onnx", "image", reference, given)
    assert comparison.cosine_min == pytest.approx(1 / np.sqrt(1.01), abs=1e-6)
    assert comparison.cosine_mean == pytest.approx((2 + 1 / np.sqrt(1.01)) / 3, abs=1e-6)
    assert comparison.max_abs == pytest.approx(0.1 / np.sqrt(1.01), abs=1e-6)


def test_nan_does_not_pass() -> None:
    reference = unit(np.eye(2))
    given = reference.copy()
    given[0, 0] = np.nan
    report = ParityReport("r", "float32", [Comparison.of("onnx", "text", reference, given)])
    with pytest.raises(ParityError, match="text tower at stage 'onnx'"):
        report.require()


def test_the_first_lossy_stage_is_named() -> None:
    good, bad = Comparison("merge", "image", 1.0, 1.0, 0.0, 1.0), Comparison("onnx", "image", 0.9, 0.95, 0.3, 0.9)
    worse = Comparison("onnx, batch 8", "image", 0.5, 0.6, 0.9, 0.5)
    with pytest.raises(ParityError, match=r"image tower at stage 'onnx': cosine 0\.900000.*nothing was published"):
        ParityReport("r", "float32", [good, bad, worse]).require()


def test_a_damaged_graph_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One weight matrix of the exported file is scaled by 1.5 between export and gate."""
    original = onnx_export.export_image_tower

    def damage(tower, spec, path: Path) -> None:
        original(tower, spec, path)
        model = onnx.load(path)
        largest = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        largest.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(largest) * 1.5, largest.name))
        onnx.save(model, path)

    monkeypatch.setattr(pipeline.onnx_export, "export_image_tower", damage)
    source = write_tiny_checkpoint(tmp_path / "tiny")
    with pytest.raises(ParityError, match="image tower at stage 'onnx'"):
        export(ExportRequest(str(source), tmp_path / "out"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny"]


def test_the_exit_code_of_the_gate_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setitem(pipeline.parity.MINIMUM_COSINE, "float32", {"image": 1.1, "text": 1.1})
    source = write_tiny_checkpoint(tmp_path / "tiny")
    assert main(["export", str(source), str(tmp_path / "out")]) == 5
    assert "error: the export does not reproduce the checkpoint" in capsys.readouterr().err
