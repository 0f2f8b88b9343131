"""`tritonclip demo`: the path from LoRA to answer to price, on the bundled checkpoint and images."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tritonclip_bench.cli_types import count, positive_seconds

HELP = "export the bundled checkpoint with its LoRA, serve it, classify images, run a load test"

# An example: what the machine costs is for the user to say.
EXAMPLE_INSTANCE = "g4dn.xlarge"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", metavar="DIR", type=Path, nargs="?", default=Path("work/demo"), help="default: %(default)s"
    )
    parser.add_argument(
        "--duration", type=positive_seconds, default=10, metavar="TIME", help="measured time of the load test (10s)"
    )
    parser.add_argument("--users", type=count("users"), default=8, help="requests in flight at once (8)")
    price = parser.add_mutually_exclusive_group()
    price.add_argument("--price-per-hour", type=float, metavar="X", help="US dollars an hour for this machine")
    price.add_argument(
        "--instance",
        default=EXAMPLE_INSTANCE,
        metavar="NAME",
        help="take the price of an instance from the dated table, as if this machine were one (%(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Run every step and say what it is."""
    from tritonclip_bench import demo
    from tritonclip_bench.cost.price_table import find_price, today
    from tritonclip_serve.interrupts import raise_on_signals

    demo.check_checkout()
    # What the last step would refuse is refused before the first.
    find_price(args.instance, args.price_per_hour, today().isoformat())
    demo.make_folder(args.folder)
    with raise_on_signals():
        _run_steps(args)
    print("stopped. The repository stays: tritonclip serve", args.folder / "repository")
    return 0


def _run_steps(args: argparse.Namespace) -> None:
    from tritonclip_bench import demo
    from tritonclip_serve import TritonServer

    repository = args.folder / "repository"
    _title("1. export: merge the LoRA, convert both towers, compare with PyTorch")
    demo.export_repository(repository)
    _title("2. the base model's answers, in PyTorch, without the LoRA")
    before = demo.answers_before_merge()
    _title("3. serve: a real tritonserver")
    server = TritonServer(repository, grpc_port=0, metrics_port=0, log_path=args.folder / "tritonserver.log")
    try:
        server.start()
        server.wait_ready(on_progress=lambda news: print(f"  {news}", file=sys.stderr, flush=True))
        print(f"{server.description} answers on {server.grpc_address}; its log: {server.log_path}")
        _title("4. classify the images through the gRPC client")
        print(demo.render(demo.classify(server.grpc_address), before))
        _title(f"5. load test: {args.users} users, {args.duration} s")
        demo.load_test(server.grpc_address, _bench_options(args))
        _title("6. stop the server")
    finally:
        server.stop()


def _bench_options(args: argparse.Namespace) -> list[object]:
    price = ["--instance", args.instance] if args.price_per_hour is None else ["--price-per-hour", args.price_per_hour]
    return ["--scenario", "image", "--duration", args.duration, "--users", args.users, "--warmup", "2s", *price]


def _title(text: str) -> None:
    print(f"\n== {text}", flush=True)
    sys.stderr.flush()
