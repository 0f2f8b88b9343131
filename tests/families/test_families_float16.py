"""Every family in float16: rounded in PyTorch, run by ONNX Runtime, against float32 of the library that owns it."""

from __future__ import annotations

from pathlib import Path

import pytest

from families import FAMILIES, Family
from tritonclip_export.engine.lint import lint
from tritonclip_export.pipeline import ExportRequest, export

LEAST_COSINE = 0.9995


def _rows() -> list[object]:
    return [
        pytest.param(
            family,
            id=family.test_id,
            marks=() if family.is_quick else pytest.mark.slow,
        )
        for family in FAMILIES
    ]


# Towers of their real size are watched layer by layer.
@pytest.mark.timeout(900)
@pytest.mark.parametrize("family", _rows())
def test_float16_reproduces_the_checkpoint(family: Family, tmp_path: Path) -> None:
    family.write(tmp_path / "checkpoint")
    report = export(ExportRequest(str(tmp_path / "checkpoint"), tmp_path / "out", precision="float16"))["parity"]
    narrow = [comparison for comparison in report["comparisons"] if comparison["stage"] != "merge"]
    assert {(c["stage"], c["tower"]) for c in narrow} >= {
        (s, t) for s in ("float16", "onnx") for t in ("image", "text")
    }
    assert min(comparison["cosine_min"] for comparison in narrow) >= LEAST_COSINE
    assert [lint(path) for path in sorted((tmp_path / "out").glob("*_encoder/1/model.onnx"))] == [[], []]
    assert not any(layers["islands"] for layers in report["layers"].values())
