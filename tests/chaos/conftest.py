"""What tests of the campaigns share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tritonclip_chaos.campaign import Context

SEED = 12


@pytest.fixture
def context(demo_repository: Path, tmp_path: Path) -> Context:
    """The short version, on the demo."""
    return Context(SEED, tmp_path, demo_repository, short=True)
