"""The page of a real run, in a real browser."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench_records import private_details
from browser import INSTALL, assert_page_is_whole, browsing, find_chromium
from tritonclip_client.main import main
from tritonclip_serve import TritonServer


@pytest.mark.browser
@pytest.mark.skipif(find_chromium() is None, reason=f"no Chromium here; {INSTALL}")
def test_a_real_run_becomes_a_page(server: TritonServer, tmp_path: Path) -> None:
    page, record = tmp_path / "page.html", tmp_path / "record.json"
    command = [sys.executable, "-m", "tritonclip_client.main", "bench", "--address", server.grpc_address]
    command += ["--users", "2", "--duration", "2s", "--warmup", "1s", "--price-per-hour", "1"]
    command += ["--label", "real", "--json", str(record), "--html", str(page)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    html = page.read_text()
    assert "<h1>real</h1>" in html
    told = json.loads(record.read_text())
    assert told["server"]["fingerprint"] in html
    assert f"{told['results']['total']['items_per_s']:.1f}</td>" in html
    for chart in ("Where the time goes", "Response times", "Over time"):
        assert f"<h3>{chart}</h3>" in html
    assert private_details(html) == []
    with browsing(tmp_path / "chromium") as browser:
        assert_page_is_whole(browser, page, least_charts=3)
    again = tmp_path / "again.html"
    assert main(["bench", "report", str(record), "--html", str(again)]) == 0
    assert again.read_text() == html
