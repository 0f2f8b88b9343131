"""`tritonclip serve DIR`: a tritonserver in the foreground."""

from __future__ import annotations

import argparse
import ipaddress
import math
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from tritonclip_export.commands.sign_options import add_verify_key
from tritonclip_serve.installation import SERVER_KINDS
from tritonclip_serve.interrupts import ignore_signals, raise_on_signals
from tritonclip_serve.repository import Identity, check_repository, read_identity
from tritonclip_serve.verified import ALL, LEVELS
from tritonclip_serve.watch import copied_log

if TYPE_CHECKING:
    from tritonclip_serve.server import TritonServer

HELP = "serve a model repository on a real tritonserver until interrupted"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `tritonclip serve`."""
    parser.add_argument("repository", metavar="DIR", type=Path, help="what `tritonclip export` wrote")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    for endpoint, port in (("grpc", 8001), ("http", 8000), ("metrics", 8002)):
        parser.add_argument(
            f"--{endpoint}-port", type=int, default=port, metavar="PORT", help="0: any free one (default: %(default)s)"
        )
    parser.add_argument(
        "--log-file", type=Path, help="the server's own log (default: DIR.tritonserver-PORT.log, beside DIR)"
    )
    parser.add_argument("--show-log", action="store_true", help="also print the server's own log, as containers do")
    parser.add_argument(
        "--server",
        choices=SERVER_KINDS,
        default="auto",
        help="the wheel's tritonserver, the one on PATH, or whichever there is (default: %(default)s)",
    )
    parser.add_argument(
        "--verify",
        choices=LEVELS,
        default=ALL,
        help="what is compared with the manifest before the start: every file, or `code`: all but large weights "
        "(default: %(default)s)",
    )
    add_verify_key(parser)
    parser.add_argument(
        "--timeout", type=_seconds, default=120.0, help="seconds to wait for readiness (default: %(default)g)"
    )


def run(args: argparse.Namespace) -> int:
    """Serve until a signal asks to stop; raises ServeError when the server does not start or does not last."""
    with raise_on_signals(), ExitStack() as after_stop:
        from tritonclip_serve.server import TritonServer

        check_repository(args.repository)
        identity = read_identity(args.repository)
        server = TritonServer(
            args.repository,
            host=args.host,
            grpc_port=args.grpc_port,
            http_port=args.http_port,
            metrics_port=args.metrics_port,
            log_path=args.log_file,
            server=args.server,
            verify=args.verify,
            verify_key=args.verify_key,
            startup_timeout_s=args.timeout,
        )
        try:
            _start(server, args)
            if args.show_log:
                after_stop.enter_context(copied_log(server.log_path, sys.stderr.buffer))
            _wait(server, identity)
        except KeyboardInterrupt:
            _say("stopping …")
        finally:
            ignore_signals()
            server.stop()
    _say("stopped")
    return 0


def _start(server: TritonServer, args: argparse.Namespace) -> None:
    if not _is_loopback(args.host):
        _say(f"warning: anyone who reaches {args.host} can use this server: it has no authentication and no encryption")
    server.start()
    _say(f"starting {server.description} on {server.repository}\nlog: {server.log_path}")


def _wait(server: TritonServer, identity: Identity) -> None:
    seconds = server.wait_ready(on_progress=_progress_printer())
    fingerprint = f", fingerprint {identity.fingerprint[:12]}" if identity.fingerprint else ""
    print(
        f"ready in {seconds:.1f} s: {identity.name}{fingerprint}, gRPC {server.grpc_address}, "
        f"HTTP {server.http_address}, metrics {server.metrics_address}; Ctrl-C stops it",
        flush=True,
    )
    server.wait()


def _progress_printer() -> Callable[[str], None]:
    started = time.monotonic()

    def show(news: str) -> None:
        _say(f"  {time.monotonic() - started:4.1f} s  {news}")

    return show


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no time to wait; give seconds, more than 0")
    return seconds
