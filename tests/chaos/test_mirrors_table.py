"""The table of Triton's own tests names what there is."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from tritonclip_chaos.campaign import NAMES, load
from tritonclip_chaos.mirrors import CAMPAIGN, Mirror, read_mirrors
from tritonclip_chaos.page import BEFORE, render

ROOT = Path(__file__).parents[2]
WANTED = {"L0_lifecycle", "L0_request_cancellation", "L0_grpc_state_cleanup", "L0_model_queue", "L0_client_timeout"}
WANTED |= {"L0_input_validation", "L0_http_fuzz", "L0_nullchar_string", "L0_large_payload", "L0_memory_growth"}
WANTED |= {"L0_secure_grpc", "L0_response_cache", "L0_nan_inf", "L0_logging", "L0_metrics", "L0_long_running_stress"}


def names_of(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


@pytest.mark.parametrize("mirror", read_mirrors(), ids=lambda mirror: mirror.test)
def test_what_covers_it_is_there(mirror: Mirror) -> None:
    assert bool(mirror.covers) != bool(mirror.why)
    for cover in mirror.covers:
        if cover.startswith(CAMPAIGN):
            name = cover.removeprefix(CAMPAIGN)
            assert name in NAMES
            assert load(name).name == name
        else:
            file, _, test = cover.partition("::")
            assert test in names_of(ROOT / file), cover


def test_none_is_missing() -> None:
    assert WANTED <= {mirror.test.partition(":")[0] for mirror in read_mirrors()}


def test_the_page_shows_all() -> None:
    page = render([], json.loads(BEFORE.read_text(encoding="utf-8")))
    for mirror in read_mirrors():
        assert f"| {mirror.test} |" in page
