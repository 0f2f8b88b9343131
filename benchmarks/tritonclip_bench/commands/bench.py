"""`tritonclip bench`: put load on a server, print throughput, latency and cost, write them as JSON."""

from __future__ import annotations

import argparse
import sys

from tritonclip_bench.cli_types import count, positive_seconds
from tritonclip_bench.commands import (
    bench_compare,
    bench_cost,
    bench_curve,
    bench_gpu,
    bench_report,
    bench_slo,
    bench_tune,
)
from tritonclip_bench.results.repeat_options import add_repeat_arguments, run_length
from tritonclip_bench.traffic.options import add_load_arguments, add_rate_argument

HELP = "load-test a running server: throughput, exact latency percentiles, dollars per million items"
# Other benchmarks, each a module like this one.
BENCHMARKS = {
    "compare": bench_compare,
    "cost": bench_cost,
    "curve": bench_curve,
    "gpu": bench_gpu,
    "report": bench_report,
    "slo": bench_slo,
    "tune": bench_tune,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options, and the other benchmarks."""
    others = parser.add_subparsers(dest="benchmark", metavar="BENCHMARK", help="another benchmark than the load test")
    for name, module in BENCHMARKS.items():
        other = others.add_parser(name, help=module.HELP, description=module.HELP)
        module.add_arguments(other)
    parser.add_argument("--users", type=count("users"), default=8, help="requests in flight at once (8)")
    parser.add_argument("--duration", type=positive_seconds, default=30, metavar="TIME", help="measured time (30s)")
    add_load_arguments(parser)
    add_rate_argument(parser)
    add_repeat_arguments(parser)
    parser.add_argument("--progress", action="store_true", help="show the current rate (default on a terminal)")


def run(args: argparse.Namespace) -> int:
    """Measure and report; 1 when a request failed or a run broke, 130 when it was interrupted, else 0."""
    if args.benchmark is not None:
        status: int = BENCHMARKS[args.benchmark].run(args)
        return status

    from tritonclip_bench.files import saving
    from tritonclip_bench.load.planning import prepare
    from tritonclip_bench.results.page import save_page
    from tritonclip_bench.results.repeats import exit_status, is_good, measure_record
    from tritonclip_bench.results.report import render

    length = run_length(args)
    plan, server, price = prepare(args)
    progress = args.progress or sys.stderr.isatty()
    record = measure_record(plan, server, price, length, label=args.label, progress=progress, save=saving(args.json))
    print(render(record))
    save_page(args.html, record)
    return exit_status(record["broken"], is_good(record))
