"""The flags of tritonserver."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tritonclip_serve.die_with_parent import PLACEHOLDER
from tritonclip_serve.engines import engine_arguments
from tritonclip_serve.installation import Installation

_MIB = 1 << 20
RESPONSE_CACHE_BYTES = 64 * _MIB
_EVERY_ADDRESS = "0.0.0.0"
_LOOPBACK = "127.0.0.1"
# What only the holder of the key may ask for. Statistics stay open: they hold counts, and the load test reads them.
_RESTRICTED = ("model-repository", "shared-memory", "logging", "trace")
_KEY = "tritonclip"


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


def control_headers(key: str) -> dict[str, str]:
    """What a gRPC call has to carry for what is restricted."""
    return {f"triton-grpc-protocol-{_KEY}": key}


def command_line(
    installation: Installation,
    repository: Path,
    endpoints: Endpoints,
    shared_memory_prefix: str,
    exit_timeout_s: int = 30,
) -> list[str]:
    """The program and its flags, with `die_with_parent.PLACEHOLDER` where the key to what is restricted belongs.

    Args:
        exit_timeout_s: how long the server, asked to end, answers what it has begun.
    """
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
        # Models can be loaded again one by one, by who has the key.
        "--model-control-mode=explicit",
        "--load-model=*",
        f"--exit-timeout-secs={exit_timeout_s}",
        *addresses,
        f"--cache-config=local,size={RESPONSE_CACHE_BYTES}",
        f"--backend-config=python,shm-region-prefix-name={shared_memory_prefix}",
        *_restrictions(),
        *installation.arguments,
        *engine_arguments(repository),
    ]


def _restrictions() -> list[str]:
    """Clients must neither load models nor name memory of this machine, nor change what is logged and traced."""
    rule = f"{','.join(_RESTRICTED)}:{_KEY}={PLACEHOLDER}"
    return [f"--grpc-restricted-protocol={rule}", f"--http-restricted-api={rule}"]
