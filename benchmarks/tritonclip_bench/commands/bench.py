"""`tritonclip bench`: put load on a server, print throughput, latency and cost, write them as JSON."""

from __future__ import annotations

import argparse
import sys
from datetime import datetime, timezone
from pathlib import Path

from tritonclip_bench.commands import bench_gpu
from tritonclip_bench.options import add_workload_arguments, count, positive_seconds, settle_seed
from tritonclip_client.options import DEFAULT_ADDRESS

HELP = "load-test a running server: throughput, exact latency percentiles, dollars per million items"
# Other benchmarks, each a module like this one.
BENCHMARKS = {"gpu": bench_gpu}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options, and the other benchmarks."""
    others = parser.add_subparsers(dest="benchmark", metavar="BENCHMARK", help="another benchmark than the load test")
    for name, module in BENCHMARKS.items():
        other = others.add_parser(name, help=module.HELP, description=module.HELP)
        module.add_arguments(other)
    parser.add_argument("--address", default=DEFAULT_ADDRESS, help="the server's gRPC address, HOST:PORT")
    parser.add_argument("--users", type=count("users"), default=8, help="requests in flight at once (8)")
    parser.add_argument("--duration", type=positive_seconds, default=30, metavar="TIME", help="measured time (30s)")
    add_workload_arguments(parser)
    parser.add_argument("--price-per-hour", type=float, metavar="X", help="US dollars for the whole server")
    parser.add_argument("--instance", metavar="NAME", help="take the price from the dated table")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the whole result here")
    parser.add_argument("--progress", action="store_true", help="show the current rate (default on a terminal)")


def run(args: argparse.Namespace) -> int:
    """Measure and report; 1 when a request failed, else 0."""
    if args.benchmark is not None:
        status: int = BENCHMARKS[args.benchmark].run(args)
        return status

    from tritonclip_bench.endpoint import describe
    from tritonclip_bench.files import check_writable, write_json
    from tritonclip_bench.loadrun import LoadPlan, run_load
    from tritonclip_bench.prices import find_price
    from tritonclip_bench.report import make_report, render
    from tritonclip_bench.workload import check_files, check_limits

    today = datetime.now(timezone.utc).date().isoformat()
    price = find_price(args.instance, args.price_per_hour, today)
    if args.json is not None:
        check_writable(args.json)
    check_files(args)
    server = describe(args.address)
    check_limits(args, server)
    plan = LoadPlan(
        address=args.address,
        scenario=args.scenario,
        users=args.users,
        duration_s=args.duration,
        warmup_s=args.warmup,
        deadline_s=args.deadline,
        batch_size=args.batch_size,
        labels=args.labels,
        seed=settle_seed(args.seed),
        repeat_texts=args.repeat_texts,
        pictures=args.pictures,
        texts=args.texts,
        rate=args.rate,
    )
    results = run_load(plan, progress=args.progress or sys.stderr.isatty())
    report = make_report(plan, server, results, price)
    if args.json is not None:
        write_json(args.json, report)
    print(render(report))
    total = results["total"]
    return 1 if total["failures"] or not total["requests"] else 0
