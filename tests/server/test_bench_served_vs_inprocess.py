"""The comparison of the server with one process runs on a real repository and adds up."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "served_vs_inprocess.py"


@pytest.mark.slow
def test_the_comparison_measures_every_pattern_against_both_baselines(server, tmp_path):
    result = tmp_path / "result.json"
    command = [sys.executable, SCRIPT, "--repository", server.repository, "--rounds", "2", "--seconds", "0.5"]
    command += ["--log", tmp_path / "server.log", "--json", result]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    # 1 says that this very short run missed the target, which is no failure of the script.
    assert done.returncode in (0, 1), done.stderr
    record = json.loads(result.read_text())
    rates = record["images_per_s"]
    assert len(record["comparison"]) == 10
    for row in record["comparison"]:
        served, baseline = rates[row["pattern"]], rates[row["baseline"]]
        assert min(served) > 0
        assert row["ratio"] == statistics.median(ours / theirs for ours, theirs in zip(served, baseline, strict=True))
        assert f"{row['ratio']:.3f}" in done.stdout
    for faster, *pair in zip(
        rates["sequential"], rates["sequential, spinning"], rates["sequential, sleeping"], strict=True
    ):
        assert faster == max(pair)


def test_a_folder_that_is_no_repository_is_one_clear_line(tmp_path):
    command = [sys.executable, SCRIPT, "--repository", tmp_path, "--json", tmp_path / "result.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "tritonclip export" in done.stderr


def test_a_result_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path):
    command = [sys.executable, SCRIPT, "--repository", tmp_path, "--json", tmp_path / "missing" / "result.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "result.json cannot be written; give a file in a folder that exists" in done.stderr
