"""`tritonclip bench curve`: throughput and latency, step by step from a light load to a heavy one."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tritonclip_bench.cli_types import count, positive_number, positive_seconds
from tritonclip_bench.results.repeat_options import add_repeat_arguments, run_length
from tritonclip_bench.traffic.options import add_load_arguments

HELP = "measure a running server step by step, from few users or requests a second to many"
USERS = (1, 2, 4, 8, 16)
CONNECTIONS = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--users",
        type=_several(count("users")),
        metavar="N,N,...",
        help=f"closed loops of so many users, in turn ({','.join(map(str, USERS))}, where no --rates are given)",
    )
    parser.add_argument(
        "--rates", type=_several(positive_number), metavar="R,R,...", help="open loops of R requests a second, in turn"
    )
    parser.add_argument(
        "--connections", type=count("connections"), default=CONNECTIONS, help=f"of an open loop ({CONNECTIONS})"
    )
    parser.add_argument(
        "--duration", type=positive_seconds, default=10, metavar="TIME", help="measured time of each run (10s)"
    )
    add_load_arguments(parser)
    add_repeat_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Measure every step and report; 1 when a request failed or a step broke, 130 when it was interrupted, else 0."""
    from tritonclip_bench.files import saving
    from tritonclip_bench.load.planning import prepare
    from tritonclip_bench.results.curve import measure_curve, render
    from tritonclip_bench.results.page import save_page
    from tritonclip_bench.results.repeats import exit_status, is_good

    length = run_length(args)
    users = args.users or ([] if args.rates else list(USERS))
    rates = args.rates or []
    # One step's; the steps follow from it.
    args.users, args.rate = max([*users, *([args.connections] if rates else [])]), None
    plan, server, price = prepare(args)
    plans = [replace(plan, users=number, processes=min(plan.processes, number)) for number in users]
    open_loop = replace(plan, users=args.connections, processes=min(plan.processes, args.connections))
    plans += [replace(open_loop, rate=rate) for rate in rates]
    curve: dict[str, Any] = {}
    try:
        measure_curve(plans, server, price, length, curve, label=args.label, save=saving(args.json))
    finally:
        # After Ctrl-C, or a server that died, the steps so far.
        if curve:
            print(render(curve))
            save_page(args.html, curve)
    return exit_status(curve["broken"], all(map(is_good, curve["records"])))


def _several(parse: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """An argparse type: several of what `parse` takes, with commas between, each once and in rising order."""

    def several(text: str) -> list[Any]:
        return sorted({parse(part.strip()) for part in text.split(",")})

    return several
