"""The comparison with baselines runs from end to end, with the sides that need no environment of their own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "baselines" / "run.py"


@pytest.mark.slow
def test_every_side_answers_alike_and_is_measured_in_every_round(demo, tmp_path):
    path = tmp_path / "result.json"
    command = [sys.executable, SCRIPT, "--model", demo / "checkpoint", "--work", tmp_path, "--json", path]
    command += ["--sides", "onnxruntime,ceiling", "--patterns", "1x1,4x8", "--rounds", "2", "--seconds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads(path.read_text())
    assert (record["kind"], record["schema"], record["broken"]) == ("baselines", 2, None)
    for side in ("onnxruntime", "ceiling"):
        for scenario in ("image", "text"):
            assert record["answers"][side][scenario]["centered_cosine"] > 0.999
    assert len(record["records"]) == 3 * 2 * 2
    for load in record["records"]:
        assert load["kind"] == "load"
        assert len(load["repeats"]) == 2
        assert load["results"] in load["repeats"]
        assert load["results"]["total"]["items"] > 0
        assert load["results"]["total"]["failures"] == 0
    assert len(record["ratios"]) == 2 * 2 * 2
    assert all(len(row["ratios"]) == 2 for row in record["ratios"])
    assert f"{record['ratios'][0]['ratio']:.2f}" in done.stdout
    assert str(tmp_path) not in path.read_text()
    tables = subprocess.run(
        [sys.executable, SCRIPT, "--markdown", path], capture_output=True, text=True, timeout=60, check=True
    )
    assert "| tritonclip |" in tables.stdout
