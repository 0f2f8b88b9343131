"""`tritonclip serve DIR`: a tritonserver in the foreground."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from tritonclip_export.commands.sign_options import add_verify_key
from tritonclip_serve.edge import options as network
from tritonclip_serve.installation import SERVER_KINDS
from tritonclip_serve.interrupts import call_on_signals, raise_on_signals
from tritonclip_serve.repository import Identity, check_repository, read_identity
from tritonclip_serve.runs import sweep
from tritonclip_serve.supervision import options as staying_up
from tritonclip_serve.verified import ALL, LEVELS
from tritonclip_serve.watch import copied_log

if TYPE_CHECKING:
    from tritonclip_serve.server import TritonServer
    from tritonclip_serve.supervision.supervisor import Supervisor

# What models get to end, after the calls in them have been answered.
_END_S = 3.0
HELP = "serve a model repository on a real tritonserver until interrupted"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `tritonclip serve`."""
    parser.add_argument("repository", metavar="DIR", type=Path, help="what `tritonclip export` wrote")
    network.add_arguments(parser)
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
    staying_up.add_arguments(parser)
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
    """Serve until a signal asks to stop; raises ServeError when the server does not start or cannot be kept up."""
    with raise_on_signals(), ExitStack() as after_stop:
        from tritonclip_serve.server import TritonServer

        check_repository(args.repository)
        identity = read_identity(args.repository)
        server = TritonServer(
            args.repository,
            **network.server_options(args),
            **staying_up.server_options(args),
            log_path=args.log_file,
            server=args.server,
            verify=args.verify,
            verify_key=args.verify_key,
            startup_timeout_s=args.timeout,
        )
        supervisor = staying_up.make_supervisor(server, args)
        try:
            _sweep()
            _start(server)
            if args.show_log:
                after_stop.enter_context(copied_log(server.log_path, sys.stderr.buffer))
            _wait(server, supervisor, identity)
        except KeyboardInterrupt:
            call_on_signals(server.kill)
            _say(f"stopping: what has begun is answered for up to {args.drain_seconds:g} s; a second signal ends it …")
            supervisor.drain(args.drain_seconds)
        finally:
            call_on_signals(server.kill)
            server.stop(_END_S)
    _say("stopped")
    return 0


def _sweep() -> None:
    left = sweep()
    if left:
        _say(f"removed what {len(left)} killed server{'s' * (len(left) > 1)} left behind: {', '.join(left)}")


def _start(server: TritonServer) -> None:
    server.start()
    _say(f"starting {server.description} on {server.repository}\nlog: {server.log_path}")


def _wait(server: TritonServer, supervisor: Supervisor, identity: Identity) -> None:
    seconds = server.wait_ready(on_progress=_progress_printer())
    fingerprint = f", fingerprint {identity.fingerprint[:12]}" if identity.fingerprint else ""
    print(
        f"ready in {seconds:.1f} s: {identity.name}{fingerprint}, {network.describe(server)}; Ctrl-C stops it",
        flush=True,
    )
    supervisor.run()


def _progress_printer() -> Callable[[str], None]:
    started = time.monotonic()

    def show(news: str) -> None:
        _say(f"  {time.monotonic() - started:4.1f} s  {news}")

    return show


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no time to wait; give seconds, more than 0")
    return seconds
