"""Where a server listens, and who may reach it there."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from tritonclip_serve.errors import AddressError
from tritonclip_serve.ports import claim_ports

LOOPBACK = "127.0.0.1"
_EVERY_ADDRESS = "0.0.0.0"


@dataclass(frozen=True)
class Endpoints:
    """One host with its public ports, and the ports of loopback that the edge stands in front of.

    Attributes:
        host: IPv4 address or host name that callers reach.
        grpc, metrics: public ports.
        http: the public port of HTTP inference; None: there is none.
        inner_metrics: tritonserver's own metrics, on loopback.
        inner_http: tritonserver's own HTTP, on loopback, where the edge ends its TLS; else None.
    """

    host: str
    grpc: int
    metrics: int
    http: int | None = None
    inner_metrics: int = 0
    inner_http: int | None = None

    def connectable(self, endpoint: str) -> tuple[str, int]:
        """Host and port at which this machine reaches a public endpoint: `grpc`, `http` or `metrics`.

        Raises:
            AddressError: there is no such endpoint.
        """
        port = getattr(self, endpoint)
        if port is None:
            raise AddressError(f"this server has no {endpoint.upper()} endpoint; start it with one (--{endpoint})")
        return (LOOPBACK if self.host == _EVERY_ADDRESS else self.host), int(port)

    def address(self, endpoint: str) -> str:
        """`host:port` of a public endpoint."""
        host, port = self.connectable(endpoint)
        return f"{host}:{port}"

    def claimed(self, encrypted: bool) -> Endpoints:
        """The same with a free port for each 0, and the inner ports chosen.

        Raises:
            AddressError: a port or the host cannot be listened on.
        """
        wanted = {"--grpc-port": self.grpc, "--metrics-port": self.metrics}
        wanted |= {} if self.http is None else {"--http-port": self.http}
        public = claim_ports(self.host, wanted)
        inner = claim_ports(LOOPBACK, {"metrics": 0, "http": 0}, avoid=set(public.values()))
        http = public.get("--http-port")
        return Endpoints(
            self.host,
            grpc=public["--grpc-port"],
            metrics=public["--metrics-port"],
            http=http,
            inner_metrics=inner["metrics"],
            inner_http=inner["http"] if encrypted and http is not None else None,
        )

    def served(self) -> set[int]:
        """The ports on which tritonserver itself answers inference."""
        http = self.inner_http if self.inner_http is not None else self.http
        return {self.grpc, *([] if http is None else [http])}

    def arguments(self) -> list[str]:
        """The flags of tritonserver."""
        flags = [f"--grpc-address={self.host}", f"--grpc-port={self.grpc}"]
        if self.http is None:
            flags.append("--allow-http=false")
        else:
            address, port = (self.host, self.http) if self.inner_http is None else (LOOPBACK, self.inner_http)
            flags += [f"--http-address={address}", f"--http-port={port}"]
        return [*flags, f"--metrics-address={LOOPBACK}", f"--metrics-port={self.inner_metrics}"]


def check_exposure(host: str, encrypted: bool, insecure: bool) -> None:
    """Refuse to serve other machines in the clear, unless that is asked for.

    Raises:
        AddressError: `host` is not loopback, there is no TLS, and `insecure` was not given.
    """
    if not (is_loopback(host) or encrypted or insecure):
        raise AddressError(
            f"--host {host} can be reached from other machines, and there is neither encryption nor authentication: "
            "give --tls-cert and --tls-key (and --tls-client-ca), put a proxy in front of 127.0.0.1, or accept it with "
            "--insecure; docs/security.md says who could do what"
        )


def is_loopback(host: str) -> bool:
    """Whether a host to listen on is this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
