"""What the tests of classifiers start from."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def repository(demo_repository: Path, tmp_path: Path) -> Path:
    """The demo's repository, to write into."""
    return shutil.copytree(demo_repository, tmp_path / "repository")


@pytest.fixture
def labels(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A file of the LABELS of the module that asks, one a line."""
    path = tmp_path / "labels.txt"
    path.write_text("\n".join(request.module.LABELS), encoding="utf-8")
    return path
