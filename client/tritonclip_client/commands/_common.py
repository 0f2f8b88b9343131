"""What the client's commands share: the server's address, lists from files, and how results are printed."""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritonclip_client.errors import InvalidInputError
from tritonclip_client.options import DEFAULT_ADDRESS, DEFAULT_TIMEOUT_S

if TYPE_CHECKING:
    from tritonclip_client.client import ClipClient


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """`--address`, `--timeout` and `--json`."""
    add_address_argument(parser)
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=DEFAULT_TIMEOUT_S,
        metavar="SECONDS",
        help="for all images, and again for all texts where both are embedded (%(default)g)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")


def add_address_argument(parser: argparse.ArgumentParser) -> None:
    """`--address`, and what a server behind TLS or a proxy asks for."""
    parser.add_argument(
        "--address", default=DEFAULT_ADDRESS, metavar="HOST:PORT", help="the server's gRPC address (%(default)s)"
    )
    parser.add_argument("--tls", action="store_true", help="encrypt, and trust whom the system trusts")
    for option, meaning in (
        ("--tls-ca", "encrypt, and trust the authorities in this PEM file"),
        ("--tls-cert", "the caller's certificate, for a server with mutual TLS"),
        ("--tls-key", "its private key"),
    ):
        parser.add_argument(option, metavar="FILE", help=meaning)
    parser.add_argument(
        "--header",
        action="append",
        default=[],
        type=header,
        metavar="NAME=VALUE",
        help="sent with every request, for example a key; repeat it for more",
    )


def connection(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of `ClipClient` that say how to reach the server."""
    from tritonclip_client.options import Tls

    if (args.tls_cert is None) != (args.tls_key is None):
        raise InvalidInputError("--tls-cert and --tls-key go together; give both or neither")
    files = (args.tls_ca, args.tls_key, args.tls_cert)
    tls = Tls(*files) if args.tls or any(files) else None
    return {"address": args.address, "timeout_s": args.timeout, "tls": tls, "headers": dict(args.header) or None}


@contextmanager
def open_client(args: argparse.Namespace) -> Iterator[ClipClient]:
    """The client that the arguments ask for; texts that it had to cut are told in one line on stderr."""
    from tritonclip_client.client import ClipClient
    from tritonclip_client.long_texts import TruncationWarning

    with warnings.catch_warnings(record=True) as caught, ClipClient(**connection(args)) as client:
        warnings.simplefilter("always", TruncationWarning)
        yield client
    for warning in caught:
        print(f"warning: {warning.message}", file=sys.stderr)


def with_lines(given: list[str] | None, file: Path | None) -> list[str]:
    """The words of an option, then the lines of a file; empty lines are left out.

    Raises:
        InvalidInputError: the file cannot be read, is not UTF-8, or has nothing in it.
    """
    if file is None:
        return list(given or [])
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InvalidInputError(f"{file}: line {line} is not UTF-8; save the file as UTF-8") from error
    except OSError as error:
        raise InvalidInputError(f"{file} cannot be read ({error.strerror}); give a text file, one a line") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise InvalidInputError(f"{file} holds no text; give a text file, one a line")
    return [*(given or []), *lines]


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(document, indent=2, allow_nan=False))


def positive_int(text: str) -> int:
    """An argparse type: 1 or more."""
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} given; give a whole number from 1")
    return int(text)


def header(text: str) -> tuple[str, str]:
    """An argparse type: NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} given; give NAME=VALUE")
    # Names of HTTP/2 are lower case.
    return name.lower(), value


def seconds(text: str) -> float:
    """An argparse type: more than 0, and not endless."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text!r} given; give seconds, more than 0")
    return value
