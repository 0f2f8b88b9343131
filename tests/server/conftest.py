"""One real tritonserver with the demo checkpoint, shared by all tests that only ask it questions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tritonclip_serve import TritonServer


@pytest.fixture(scope="session")
def server(demo_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A running server; `.grpc_address`, `.repository` and `.log_path` are what tests need."""
    log_path = tmp_path_factory.mktemp("server") / "tritonserver.log"
    with TritonServer(demo_repository, grpc_port=0, metrics_port=0, log_path=log_path) as server:
        yield server
