"""The flags of `tritonclip serve` about staying up."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Any

from tritonclip_serve.log import DEFAULT_MAX_BYTES
from tritonclip_serve.supervision.policies import DEFAULT_RESTART_LIMIT

if TYPE_CHECKING:
    from tritonclip_serve.server import TritonServer
    from tritonclip_serve.supervision.supervisor import Supervisor

DEFAULT_DRAIN_S = 20.0
_SMALLEST_LOG = 1 << 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add them to the parser."""
    parser.add_argument(
        "--restart-limit",
        type=_count,
        default=DEFAULT_RESTART_LIMIT,
        metavar="N",
        help="give up where tritonserver ends by itself more than N times within a minute; 0: never start it again "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--drain-seconds",
        type=_seconds,
        default=DEFAULT_DRAIN_S,
        metavar="S",
        help="asked to end, how long to answer what has begun (default: %(default)g)",
    )
    parser.add_argument(
        "--model-memory-limit",
        type=_megabytes,
        metavar="MB",
        help="start a Python model again whose process holds more memory (default: no limit)",
    )
    parser.add_argument(
        "--log-max-bytes",
        type=_log_bytes,
        default=DEFAULT_MAX_BYTES,
        metavar="N",
        help="size at which the log moves to NAME.1 (default: %(default)s)",
    )


def server_options(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `TritonServer` that these flags decide."""
    return {"stop_grace_s": args.drain_seconds, "log_max_bytes": args.log_max_bytes}


def make_supervisor(server: TritonServer, args: argparse.Namespace) -> Supervisor:
    """The supervisor that these flags ask for."""
    from tritonclip_serve.supervision.supervisor import Limits, Supervisor

    return Supervisor(server, Limits(args.restart_limit, args.model_memory_limit))


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of restarts; give 0 or more")
    return int(text)


def _seconds(text: str) -> float:
    seconds = _number(text)
    if not seconds >= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no time to drain; give seconds, 0 or more")
    return seconds


def _megabytes(text: str) -> float:
    megabytes = _number(text)
    if not megabytes > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no amount of memory; give megabytes, more than 0")
    return megabytes


def _log_bytes(text: str) -> int:
    if not text.isdecimal() or int(text) < _SMALLEST_LOG:
        raise argparse.ArgumentTypeError(f"{text!r} is no size of a log; give bytes, {_SMALLEST_LOG} or more")
    return int(text)


def _number(text: str) -> float:
    """The number, or NaN, which compares as nothing."""
    try:
        number = float(text)
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan
