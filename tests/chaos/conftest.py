"""What tests of the campaigns share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tritonclip_chaos.campaign import Context
from tritonclip_serve import TritonServer

SEED = 12


@pytest.fixture
def context(demo_repository: Path, tmp_path: Path) -> Context:
    """The short version, on the demo."""
    return Context(SEED, tmp_path, demo_repository, short=True)


@pytest.fixture(scope="session")
def server(demo_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """One real server for all that is hostile. Nobody supervises it: a process that dies stays dead, and is seen."""
    log_path = tmp_path_factory.mktemp("server") / "tritonserver.log"
    with TritonServer(demo_repository, grpc_port=0, metrics_port=0, log_path=log_path) as server:
        yield server
