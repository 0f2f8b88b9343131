"""`tritonclip health`: does everything that serves answer? Exit status 0 or 1, and a line each, for probes."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

from tritonclip_client.causes import Cause
from tritonclip_client.commands._common import add_address_argument, connection, seconds
from tritonclip_client.errors import ClipError, InvalidInputError

if TYPE_CHECKING:
    from tritonclip_client.health import Health

HELP = (
    "have every entry point answer a small known question; exit status 0 if all do, 1 and a line for each that does not"
)
DEFAULT_TIMEOUT_S = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Fill the subcommand's parser."""
    add_address_argument(parser)
    parser.add_argument(
        "--timeout", type=seconds, default=DEFAULT_TIMEOUT_S, metavar="SECONDS", help="for all of it (%(default)g)"
    )
    parser.add_argument(
        "--entry-point",
        action="append",
        metavar="MODEL",
        help="ask this one alone, such as embed_image or classify_NAME; may be given again (all that are known)",
    )


def run(args: argparse.Namespace) -> int:
    """Ask once and say what came of it."""
    from tritonclip_client.client import ClipClient

    started = time.monotonic()
    try:
        with ClipClient(**connection(args)) as client:
            health = client.health(args.entry_point)
    except InvalidInputError:
        # The question is wrong, and says nothing of the server.
        raise
    except ClipError as error:
        print(f"unhealthy: {error}", file=sys.stderr)
        return 1
    return _report(health, 1000 * (time.monotonic() - started))


def _report(health: Health, milliseconds: float) -> int:
    overloaded = {name for name, error in health.errors.items() if error.cause is Cause.OVERLOADED}
    for name, error in health.errors.items():
        print(f"{'overloaded' if name in overloaded else 'unhealthy'}: {name}: {error}", file=sys.stderr)
    if len(health.errors) > len(overloaded):
        return 1
    if not overloaded:
        spec = f"{health.spec.name}, fingerprint {health.spec.fingerprint[:12]}, " if health.spec else ""
        print(f"healthy: {spec}answered by {', '.join(health.entry_points)} in {milliseconds:.0f} ms")
    # An overloaded server works. Whoever restarted it for that would lose what it is working on.
    return 0
