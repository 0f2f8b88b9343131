"""`tritonclip health`: does the server embed? Exit status 0 or 1, and one line, for probes of containers."""

from __future__ import annotations

import argparse
import sys
import time

from tritonclip_client.commands._common import add_address_argument, connection, seconds
from tritonclip_client.errors import ClipError, InvalidInputError

HELP = "have a small known picture and a text embedded; exit status 0 if that works, 1 and the reason if not"
DEFAULT_TIMEOUT_S = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Fill the subcommand's parser."""
    add_address_argument(parser)
    parser.add_argument(
        "--timeout", type=seconds, default=DEFAULT_TIMEOUT_S, metavar="SECONDS", help="for all of it (%(default)g)"
    )
    parser.add_argument(
        "--text",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="ask every model that pictures and texts pass through, or only those of pictures (--text)",
    )


def run(args: argparse.Namespace) -> int:
    """Ask once and say what came of it."""
    from tritonclip_client.client import ClipClient

    started = time.monotonic()
    try:
        with ClipClient(**connection(args)) as client:
            client.check_ready(texts=args.text)
            spec = client.spec
    except InvalidInputError:
        # The question is wrong, and says nothing of the server.
        raise
    except ClipError as error:
        print(f"unhealthy: {error}", file=sys.stderr)
        return 1
    what = "a picture and a text" if args.text else "a picture"
    milliseconds = 1000 * (time.monotonic() - started)
    print(f"healthy: {spec.name}, fingerprint {spec.fingerprint[:12]}, embedded {what} in {milliseconds:.0f} ms")
    return 0
