"""The flags of tritonserver."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tritonclip_serve.die_with_parent import PLACEHOLDER
from tritonclip_serve.edge.endpoints import Endpoints
from tritonclip_serve.engines import engine_arguments
from tritonclip_serve.installation import Installation

_MIB = 1 << 20
RESPONSE_CACHE_BYTES = 64 * _MIB
# What only the holder of the key may ask for. Statistics stay open: they hold counts, and the load test reads them.
_RESTRICTED = ("model-repository", "shared-memory", "logging", "trace")
_KEY = "tritonclip"
# The header by which models share themselves out between callers.
CALLER_HEADER = "tritonclip-caller"


def control_headers(key: str) -> dict[str, str]:
    """What a gRPC call has to carry for what is restricted."""
    return {f"triton-grpc-protocol-{_KEY}": key}


def command_line(
    installation: Installation,
    repository: Path,
    endpoints: Endpoints,
    shared_memory_prefix: str,
    tls_arguments: Sequence[str] = (),
    exit_timeout_s: int = 30,
) -> list[str]:
    """The program and its flags, with `die_with_parent.PLACEHOLDER` where the key to what is restricted belongs.

    Args:
        tls_arguments: flags about encryption.
        exit_timeout_s: how long the server, asked to end, answers what it has begun.
    """
    return [
        str(installation.executable),
        f"--model-repository={repository}",
        # The exported configs are complete; completing them would start every Python model twice.
        "--disable-auto-complete-config",
        # Models can be loaded again one by one, by who has the key.
        "--model-control-mode=explicit",
        "--load-model=*",
        f"--exit-timeout-secs={exit_timeout_s}",
        # Requests kept for the next ones would keep the memory of the largest messages that they ever held.
        "--grpc-infer-allocation-pool-size=0",
        *endpoints.arguments(),
        *_callers(endpoints),
        *tls_arguments,
        f"--cache-config=local,size={RESPONSE_CACHE_BYTES}",
        f"--backend-config=python,shm-region-prefix-name={shared_memory_prefix}",
        # Each time that a model's shared memory grows, the kernel walks through all of it: the default is 1 MB.
        "--backend-config=python,shm-growth-byte-size=16777216",
        *_restrictions(endpoints),
        *installation.arguments,
        *engine_arguments(repository),
    ]


def _callers(endpoints: Endpoints) -> list[str]:
    """Who calls becomes a parameter of the request, which the models read; a proxy in front sets it."""
    protocols = ["grpc", *(["http"] if endpoints.http is not None else [])]
    return [f"--{protocol}-header-forward-pattern=(?i)^{CALLER_HEADER}$" for protocol in protocols]


def _restrictions(endpoints: Endpoints) -> list[str]:
    """Clients must neither load models nor name memory of this machine, nor change what is logged and traced."""
    rule = f"{','.join(_RESTRICTED)}:{_KEY}={PLACEHOLDER}"
    flags = ["--grpc-restricted-protocol", *(["--http-restricted-api"] if endpoints.http is not None else [])]
    return [f"{flag}={rule}" for flag in flags]
