"""How to reach the server, and how patient to be."""

from __future__ import annotations

import ipaddress
import math
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import InvalidInputError

DEFAULT_ADDRESS = "127.0.0.1:8001"
DEFAULT_TIMEOUT_S = 30.0
DEFAULT_MAX_IN_FLIGHT = 8

# protobuf's own limit on one message.
MAX_MESSAGE_BYTES = 2**31 - 1

# The fair order of callers goes by this header.
CALLER_HEADER = "tritonclip-caller"

_CHANNEL_ARGUMENTS = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # Without these a client of a restarted server would go on failing for up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2000),
    ("grpc.max_reconnect_backoff_ms", 500),
    # Triton ends connections that ping more often than every 300 s. With keepalive on, the kernel also gives up a
    # connection whose data nobody confirms for the timeout: the machine behind it is gone.
    ("grpc.keepalive_time_ms", 310_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)
# gRPC would send even what stays on this machine to the proxy that `http_proxy` names.
_NO_PROXY = (("grpc.enable_http_proxy", 0),)


@dataclass(frozen=True)
class Tls:
    """Encrypt the connection. PEM files; None for `root_certificates` takes the system's.

    Attributes:
        private_key, certificate_chain: the client's own, where the server asks for mutual TLS.
    """

    root_certificates: str | os.PathLike[str] | None = None
    private_key: str | os.PathLike[str] | None = None
    certificate_chain: str | os.PathLike[str] | None = None

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of tritonclient's `InferenceServerClient`."""
        files = {name: getattr(self, name) for name in self.__dataclass_fields__}
        given = {name: os.fspath(path) for name, path in files.items() if path is not None}
        for name, path in given.items():
            if not Path(path).is_file():
                raise InvalidInputError(f"tls {name}: there is no file {path!r}; give a PEM file")
        return {"ssl": True, **given}


@dataclass(frozen=True)
class Options:
    """What both clients are made with.

    Raises:
        InvalidInputError: a value that cannot work.
    """

    address: str = DEFAULT_ADDRESS
    timeout_s: float = DEFAULT_TIMEOUT_S
    retry: bool = True
    max_in_flight: int = DEFAULT_MAX_IN_FLIGHT
    tls: Tls | None = None
    headers: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        _check_address(self.address)
        check_timeout(self.timeout_s)
        if self.max_in_flight < 1:
            raise InvalidInputError(f"max_in_flight is {self.max_in_flight}; give 1 or more")

    def sent_headers(self) -> dict[str, str]:
        """The headers of every request of one client; one that names no caller gets a random name."""
        # gRPC refuses capitals.
        given = {name.lower(): value for name, value in (self.headers or {}).items()}
        return {CALLER_HEADER: secrets.token_hex(8), **given}

    def connection(self) -> dict[str, Any]:
        """Keyword arguments of tritonclient's `InferenceServerClient`, sync and asyncio alike."""
        tls = self.tls.arguments() if self.tls else {}
        return {"url": self.address, "channel_args": [*_CHANNEL_ARGUMENTS, *proxy_arguments(self.address)], **tls}


def _check_address(address: str) -> None:
    wanted = f"give the server's gRPC address as host:port, for example {DEFAULT_ADDRESS}"
    if not address or "://" in address.replace("dns:///", ""):
        raise InvalidInputError(f"address {address!r} given; {wanted}")
    if address.startswith("unix:"):
        return
    host, _, port = address.rpartition(":")
    # An IPv6 address without brackets ends like one with a port.
    if not (host and port.isdecimal() and int(port) < 2**16) or _is_ip(address):
        raise InvalidInputError(f"address {address!r} given, which names no port; {wanted}")


def proxy_arguments(address: str) -> tuple[tuple[str, int], ...]:
    """The channel arguments with which a server on this machine is reached directly; none for any other."""
    return _NO_PROXY if is_loopback(address) else ()


def is_loopback(address: str) -> bool:
    """Whether `address`, HOST:PORT, is this machine itself."""
    host = address.removeprefix("dns:///").rpartition(":")[0].strip("[]")
    return ipaddress.ip_address(host).is_loopback if _is_ip(host) else host == "localhost"


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def check_timeout(timeout_s: float) -> float:
    """Every call has a deadline: `timeout_s` seconds, more than 0 and not endless."""
    if not (math.isfinite(timeout_s) and timeout_s > 0):
        raise InvalidInputError(f"timeout_s is {timeout_s}; give seconds, more than 0")
    return timeout_s
