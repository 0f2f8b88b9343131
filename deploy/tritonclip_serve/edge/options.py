"""The flags of `tritonclip serve` about hosts, ports, HTTP and TLS."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritonclip_serve.errors import AddressError

if TYPE_CHECKING:
    from tritonclip_serve.server import TritonServer

_DEFAULT_HTTP_PORT = 8000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of `tritonclip serve`."""
    group = parser.add_argument_group("who gets in (docs/security.md)")
    group.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    for endpoint, port in (("grpc", 8001), ("metrics", 8002)):
        group.add_argument(
            f"--{endpoint}-port", type=int, default=port, metavar="PORT", help="0: any free one (default: %(default)s)"
        )
    group.add_argument(
        "--http", action="store_true", help="also answer inference over HTTP, which one small request can crash"
    )
    group.add_argument(
        "--http-port", type=int, metavar="PORT", help=f"with --http; 0: any free one (default: {_DEFAULT_HTTP_PORT})"
    )
    group.add_argument("--tls-cert", type=Path, metavar="FILE", help="encrypt every port: the certificate, PEM")
    group.add_argument("--tls-key", type=Path, metavar="FILE", help="its private key, PEM")
    group.add_argument(
        "--tls-client-ca",
        type=Path,
        metavar="FILE",
        help="mutual TLS: callers need a certificate signed by one of these",
    )
    group.add_argument(
        "--insecure", action="store_true", help="listen beyond this machine though there is no encryption"
    )


def server_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of `TritonServer`.

    Raises:
        AddressError: options that do not go together.
    """
    from tritonclip_serve.edge.tls import ServerTls

    if args.http_port is not None and not args.http:
        raise AddressError("--http-port is given without --http; HTTP inference is off unless --http asks for it")
    if (args.tls_cert is None) != (args.tls_key is None):
        raise AddressError("--tls-cert and --tls-key go together; give both or neither")
    if args.tls_client_ca is not None and args.tls_cert is None:
        raise AddressError("--tls-client-ca is given without --tls-cert and --tls-key; mutual TLS needs all three")
    http_port = _DEFAULT_HTTP_PORT if args.http_port is None else args.http_port
    return {
        "host": args.host,
        "grpc_port": args.grpc_port,
        "http_port": http_port if args.http else None,
        "metrics_port": args.metrics_port,
        "tls": None if args.tls_cert is None else ServerTls(args.tls_cert, args.tls_key, args.tls_client_ca),
        "insecure": args.insecure,
    }


def describe(server: TritonServer) -> str:
    """The addresses of a running server, and how they are protected, as one phrase."""
    http = f"HTTP {server.http_address}, " if server.has_http else ""
    return f"gRPC {server.grpc_address}, {http}metrics {server.metrics_address}{server.encryption}"
