"""The demo command, start to end, and what the demo claims."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil


def test_demo_runs_through_and_its_adapter_pays(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "tritonclip_client.main", "demo", str(tmp_path / "demo"), "--duration", "3s"]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    right, total, before = map(
        int, re.search(r"(\d+) of (\d+) right with the LoRA merged, (\d+) before", done.stdout).groups()
    )
    assert right == total > before
    assert re.search(r"cost: .* images per dollar, \$\d+\.\d+ per million at \$0\.526 an hour", done.stdout)
    for word in ("p50", "p95", "p99"):
        assert word in done.stdout
    assert "priced as if it were one g4dn.xlarge" in done.stdout
    assert "stopped" in done.stdout


def test_a_terminated_demo_takes_its_steps_with_it(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "tritonclip_client.main", "demo", str(tmp_path / "demo")]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as demo:
        assert demo.stdout is not None
        try:
            # A line of the first step itself, below the title.
            assert next(line for line in demo.stdout if line.strip() and not line.startswith("=="))
            steps = psutil.Process(demo.pid).children(recursive=True)
            assert steps
            demo.send_signal(signal.SIGTERM)
            assert demo.wait(timeout=60) == 130
        finally:
            demo.kill()
        assert psutil.wait_procs(steps, timeout=30)[1] == []
        assert "Traceback" not in demo.stdout.read()
