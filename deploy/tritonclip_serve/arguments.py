"""The flags of tritonserver."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path

from tritonclip_serve.engines import engine_arguments
from tritonclip_serve.installation import Installation

_MIB = 1 << 20
RESPONSE_CACHE_BYTES = 64 * _MIB
_EVERY_ADDRESS = "0.0.0.0"
_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Endpoints:
    """Where a server listens: one host, three ports."""

    host: str
    grpc: int
    http: int
    metrics: int

    def connectable(self, endpoint: str) -> tuple[str, int]:
        """Host and port at which this machine reaches an endpoint (`grpc`, `http` or `metrics`)."""
        return (_LOOPBACK if self.host == _EVERY_ADDRESS else self.host), int(getattr(self, endpoint))

    def address(self, endpoint: str) -> str:
        """`host:port` of an endpoint."""
        host, port = self.connectable(endpoint)
        return f"{host}:{port}"


def command_line(
    installation: Installation, repository: Path, endpoints: Endpoints, shared_memory_prefix: str
) -> list[str]:
    """The program and its flags."""
    addresses = [
        flag
        for name in ("grpc", "http", "metrics")
        for flag in (f"--{name}-address={endpoints.host}", f"--{name}-port={getattr(endpoints, name)}")
    ]
    return [
        str(installation.executable),
        f"--model-repository={repository}",
        # The exported configs are complete; completing them would start every Python model twice.
        "--disable-auto-complete-config",
        *addresses,
        f"--cache-config=local,size={RESPONSE_CACHE_BYTES}",
        f"--backend-config=python,shm-region-prefix-name={shared_memory_prefix}",
        # By which the doors of the towers share between callers (clip_caller.py).
        "--grpc-header-forward-pattern=(tritonclip-caller)",
        *_without_client_shared_memory(),
        *installation.arguments,
        *engine_arguments(repository),
    ]


def _without_client_shared_memory() -> list[str]:
    """Clients must not name memory of this machine. From release 26.04 they cannot; before, a key that nobody knows."""
    rule = f"shared-memory:tritonclip={secrets.token_hex(16)}"
    return [f"--grpc-restricted-protocol={rule}", f"--http-restricted-api={rule}"]
