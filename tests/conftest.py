"""Fixtures that more than one folder of tests shares."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "export" / "demo"


@pytest.fixture(scope="session")
def demo() -> Path:
    """The folder of the bundled demo: checkpoint/, adapter/, images/."""
    return DEMO


@pytest.fixture(scope="session")
def demo_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo checkpoint with its adapter merged, exported as a user would. Tests must not write into it."""
    from tritonclip_client.main import main

    out = tmp_path_factory.mktemp("export") / "repository"
    status = main(["export", str(DEMO / "checkpoint"), str(out), "--adapter", str(DEMO / "adapter"), "--name", "demo"])
    assert status == 0
    return out
