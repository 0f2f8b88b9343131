"""The demo command, start to end, and what the demo claims."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path


def test_demo_runs_through_and_its_adapter_pays(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "tritonclip_client.main", "demo", str(tmp_path / "demo"), "--duration", "3s"]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    right, total, before = map(
        int, re.search(r"(\d+) of (\d+) right with the LoRA merged, (\d+) before", done.stdout).groups()
    )
    assert right == total > before
    assert re.search(r"cost: \$\d+\.\d\d per million", done.stdout)
    for word in ("p50", "p95", "p99"):
        assert word in done.stdout
    assert "stopped" in done.stdout
