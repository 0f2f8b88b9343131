"""The flags of tritonserver."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path

from tritonclip_serve.edge.endpoints import Endpoints
from tritonclip_serve.engines import engine_arguments
from tritonclip_serve.installation import Installation

_MIB = 1 << 20
RESPONSE_CACHE_BYTES = 64 * _MIB


CALLER_HEADER = "tritonclip-caller"
# What callers over HTTP may not do; nobody has to, so that the key is thrown away.
_CLOSED_OVER_HTTP = "model-repository,shared-memory,logging,trace"


def command_line(
    installation: Installation,
    repository: Path,
    endpoints: Endpoints,
    shared_memory_prefix: str,
    tls_arguments: Sequence[str] = (),
) -> list[str]:
    """The program and its flags."""
    return [
        str(installation.executable),
        f"--model-repository={repository}",
        # The exported configs are complete; completing them would start every Python model twice.
        "--disable-auto-complete-config",
        *endpoints.arguments(),
        # Becomes a parameter of the request, which the models read; a proxy in front sets it.
        f"--grpc-header-forward-pattern=(?i)^{CALLER_HEADER}$",
        *tls_arguments,
        f"--cache-config=local,size={RESPONSE_CACHE_BYTES}",
        f"--backend-config=python,shm-region-prefix-name={shared_memory_prefix}",
        *_without_client_shared_memory(),
        *_closed_over_http(endpoints),
        *installation.arguments,
        *engine_arguments(repository),
    ]


def _without_client_shared_memory() -> list[str]:
    """Clients must not name memory of this machine. From release 26.04 they cannot; before, a key that nobody knows."""
    rule = f"shared-memory:tritonclip={secrets.token_hex(16)}"
    return [f"--grpc-restricted-protocol={rule}"]


def _closed_over_http(endpoints: Endpoints) -> list[str]:
    if endpoints.http is None:
        return []
    return [f"--http-restricted-api={_CLOSED_OVER_HTTP}:tritonclip={secrets.token_hex(16)}"]
