"""An independent check of the load test: NVIDIA's perf_analyzer measures the same server with the same images.

    python benchmarks/perf_analyzer.py --repository work/vit-b-32

perf_analyzer is a C++ program inside the wheel tritonclient 2.50.0; it is installed into a virtual environment of its
own, because the wheel's Python packages are older than ours. The shared libraries that it wants come with the embedded
tritonserver. Both tools measure in turn, every other round in the other order: the same images one after another, the
same requests in flight, a gRPC connection for each, no shared memory, no streaming, the same time. Of several rounds
the medians are compared: answers a second, and the 99th percentile.

What the comparison cannot remove where clients and server share the cores: a request costs our load generator, in
Python, more CPU than perf_analyzer, in C++, and the server goes without it. The table shows both clients' cores. The
tools agree on the server where its own time dominates: with ViT-B-32 an image takes tens of milliseconds, and with the
demo's tiny model less than the client. `--rate` offers both the same Poisson arrivals in place of a closed loop.
perf_analyzer counts from the sending and we from when a request was due, which is the same as long as both keep up; and
the number of arrivals varies by chance, by its own square root, so that less than a thousand of them prove little.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

import psutil

from paired_timing import RESULTS
from perf_analyzer_tool import WHEEL, Measured, install, link_libraries, measure_theirs, write_input
from tritonclip_bench.cli_types import count, positive_number
from tritonclip_bench.errors import BenchError
from tritonclip_bench.files import check_writable, write_json
from tritonclip_bench.load.loadrun import LoadPlan, run_load
from tritonclip_bench.machine import cpu_slug, describe_machine, describe_versions
from tritonclip_bench.server.endpoint import describe
from tritonclip_bench.traffic.images import Images, load_images
from tritonclip_client.table import format_table
from tritonclip_serve.errors import ServeError
from tritonclip_serve.server import TritonServer

FOLDER = Path("work") / "perf-analyzer"
WARMUP_S = 5
TARGET = 0.10
QUIET_SHARE = 0.1


def measure_ours(plan: LoadPlan) -> Measured:
    """One round of our load test.

    Raises:
        BenchError: it gave nothing, or a request failed.
    """
    results = run_load(plan, progress=False)
    total = results["total"]
    if results.get("broken") or total["failures"] or not total["requests"]:
        raise BenchError(f"our own run is not whole: {results.get('broken') or total['failure_reasons']}")
    times = total["latency_ms"]
    return Measured(total["requests_per_s"], times["p50"], times["p99"], results["client_cpu_cores_total"])


def compare(rounds: dict[str, list[Measured]]) -> dict[str, dict[str, float]]:
    """Of each figure both medians, and ours over theirs."""
    compared = {}
    for figure in Measured.__dataclass_fields__:
        ours, theirs = (
            statistics.median(getattr(one, figure) for one in rounds[side]) for side in ("ours", "perf_analyzer")
        )
        compared[figure] = {"ours": ours, "perf_analyzer": theirs, "ratio": ours / theirs}
    return compared


def agree(compared: dict[str, dict[str, float]]) -> bool:
    """Whether throughput and p99 differ by no more than TARGET."""
    return all(abs(compared[figure]["ratio"] - 1) <= TARGET for figure in ("requests_per_s", "p99_ms"))


def run_rounds(address: str, images: Images, args: argparse.Namespace) -> dict[str, list[Measured]]:
    """All rounds, in turn, after a warm-up that nobody counts."""
    program, libraries = install(args.folder).absolute(), link_libraries(args.folder).absolute()
    plan = LoadPlan(
        address=address,
        scenario="image",
        users=args.users,
        duration_s=args.seconds,
        warmup_s=WARMUP_S,
        deadline_s=30,
        batch_size=1,
        labels=1,
        seed=0,
        repeat_texts=False,
        images=args.images,
        rate=args.rate,
    )
    rounds: dict[str, list[Measured]] = {"perf_analyzer": [], "ours": []}
    with tempfile.TemporaryDirectory(prefix="tritonclip-perf-analyzer-") as name:
        data = Path(name) / "images.json"
        write_input(images, data)
        sides: dict[str, Callable[[], Measured]] = {
            "perf_analyzer": lambda: measure_theirs(program, libraries, address, data, args, Path(name)),
            "ours": lambda: measure_ours(plan),
        }
        for number in range(args.rounds):
            for side in list(sides) if number % 2 else reversed(sides):
                rounds[side].append(sides[side]())
                print(f"round {number + 1} of {args.rounds}: {side} {rounds[side][-1]}", file=sys.stderr, flush=True)
    return rounds


def _render(compared: dict[str, dict[str, float]]) -> str:
    rows = [
        (figure, *(f"{values[key]:.2f}" for key in ("ours", "perf_analyzer")), f"{values['ratio']:.3f}")
        for figure, values in compared.items()
    ]
    verdict = "agree" if agree(compared) else "do NOT agree"
    table = format_table(("median of the rounds", "ours", "perf_analyzer", "ratio"), rows)
    return f"{table}\n\nthroughput and p99 {verdict} within {TARGET:.0%}"


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Our load test beside perf_analyzer, on one server.")
    parser.add_argument("--repository", type=Path, required=True, help="what `tritonclip export` wrote")
    parser.add_argument("--users", type=count("users"), default=4, help="requests in flight (4)")
    parser.add_argument("--rate", type=positive_number, help="an open loop of so many requests a second instead")
    parser.add_argument("--seconds", type=count("seconds"), default=30, help="measured time of a round (30)")
    parser.add_argument("--rounds", type=count("rounds"), default=3, help="an odd number gives a measured median (3)")
    parser.add_argument("--images", type=Path, help="a folder of images; default: drawn JPEGs")
    parser.add_argument("--log", type=Path, help="the server's log (default: beside the repository)")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where perf_analyzer is installed (%(default)s)")
    parser.add_argument("--json", type=Path, default=RESULTS / f"perf_analyzer-{cpu_slug()}.json", help="%(default)s")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write; 1 when the two do not agree."""
    args = _arguments(argv)
    try:
        return _run(args)
    except (BenchError, ServeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _run(args: argparse.Namespace) -> int:
    check_writable(args.json)
    images = load_images(args.images)
    busy_before = psutil.cpu_percent(interval=2.0) / 100
    if busy_before > QUIET_SHARE:
        print(f"warning: the machine is {busy_before:.0%} busy already; the tools will not agree", file=sys.stderr)
    with TritonServer(args.repository, grpc_port=0, metrics_port=0, log_path=args.log) as server:
        served = describe(server.grpc_address)
        rounds = run_rounds(server.grpc_address, images, args)
    compared = compare(rounds)
    print(_render(compared))
    record = {
        "measured_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "machine_busy_before": busy_before,
        "versions": {**describe_versions(), "perf_analyzer": WHEEL},
        "images": images.describe(),
        "users": args.users,
        "rate": args.rate,
        "seconds": args.seconds,
        "rounds": {side: [asdict(one) for one in measured] for side, measured in rounds.items()},
        "compared": compared,
        "agree": agree(compared),
        "server": {"triton": served.version, "spec": asdict(served.spec)},
    }
    write_json(args.json, record)
    return 0 if agree(compared) else 1


if __name__ == "__main__":
    sys.exit(main())
