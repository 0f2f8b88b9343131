"""How much of the machine the server leaves to the model: served throughput over the same work in one process.

    python benchmarks/served_vs_inprocess.py --repository DIR

Both sides run on this machine, in one run, in turn: every round measures the two baselines and all patterns, and
every other round backwards, so that a machine that grows slower or faster favors neither side. The baselines call
the repository's own preprocess and its ONNX graph, eight images at a time, on all cores, without a server:
`sequential` prepares a batch and then embeds it, with ONNX Runtime's threads spinning between runs or sleeping,
whichever is faster in that round; `overlapped`, the strict one, prepares the next batches in threads while it embeds.
The clients of the served side run on the same cores, so what they cost is part of the result. A machine that does
something else meanwhile favors the side with more processes: run this on a quiet one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psutil

import paired_timing
from tritonclip_bench.errors import BenchError
from tritonclip_bench.files import check_writable, write_json
from tritonclip_bench.inprocess import of_images
from tritonclip_bench.machine import cpu_slug, describe_machine, describe_versions
from tritonclip_bench.server.endpoint import connect, describe
from tritonclip_bench.traffic.images import Images, load_images
from tritonclip_bench.traffic.workload import Workload
from tritonclip_client.table import format_table
from tritonclip_serve.errors import ServeError
from tritonclip_serve.server import TritonServer

WARMUP_S = 2.0
DEADLINE_S = 60.0
RESULTS = Path(__file__).with_name("results")


@dataclass(frozen=True)
class Pattern:
    """One way of calling the server.

    Attributes:
        clients: each with one request in flight.
        batch: images in a request.
        expected: served over each baseline, predicted before the first measurement on ViT-B-32, float32, two cores.
    """

    clients: int
    batch: int
    expected: dict[str, float]

    @property
    def name(self) -> str:
        """For the table and the JSON."""
        return f"{self.clients} clients x batch {self.batch}"


PATTERNS = (
    Pattern(8, 1, {"sequential": 0.98, "overlapped": 0.92}),
    Pattern(16, 1, {"sequential": 0.99, "overlapped": 0.94}),
    # One client: while its batch is prepared the encoder idles, as in the sequential baseline.
    Pattern(1, 8, {"sequential": 0.95, "overlapped": 0.88}),
    Pattern(2, 8, {"sequential": 1.00, "overlapped": 0.95}),
    Pattern(4, 8, {"sequential": 1.01, "overlapped": 0.95}),
)
# What a pattern has to reach against the sequential baseline.
TARGET = 0.95
SEQUENTIAL = ("sequential, spinning", "sequential, sleeping")
# A machine that is busier than this before the start cannot give a ratio to believe.
QUIET_SHARE = 0.1


def measure_loop(steps: Iterator[int], seconds: float) -> float:
    """Images a second of a loop that yields how many each step did."""
    warm = time.perf_counter() + WARMUP_S
    while time.perf_counter() < warm:
        next(steps)
    begun, done = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - begun) < seconds:
        done += next(steps)
    return done / elapsed


def measure_served(address: str, pattern: Pattern, images: Images, dim: int, seconds: float) -> float:
    """Images a second that `pattern` gets from the server; every answer is checked."""
    begin = time.perf_counter() + WARMUP_S
    end = begin + seconds
    with ThreadPoolExecutor(pattern.clients) as pool:
        start = threading.Barrier(pattern.clients)
        clients = [
            pool.submit(_client, address, pattern.batch, images, dim, (begin, end), start)
            for _ in range(pattern.clients)
        ]
        return sum(client.result() for client in clients) / seconds


def _client(
    address: str, batch: int, images: Images, dim: int, window: tuple[float, float], start: threading.Barrier
) -> float:
    """Send until the window ends; returns the images inside it.

    A request that crosses an edge of the window counts by the part that lies inside.
    """
    workload = Workload(images, iter(()), batch_size=batch, labels=0, embedding_dim=dim)
    channel, stub = connect(address)
    begin, end = window
    done = 0.0
    start.wait()
    with channel:
        while (sent := time.perf_counter()) < end:
            call = workload.call("embed_image")
            workload.check(call, stub.ModelInfer(call.request, timeout=DEADLINE_S))
            answered = time.perf_counter()
            inside = max(0.0, min(answered, end) - max(sent, begin))
            done += call.items * inside / (answered - sent)
    return done


def run_rounds(args: argparse.Namespace, images: Images) -> dict[str, Any]:
    """All rounds against one server; returns images a second by side, one number a round, and the server."""
    local = of_images(args.repository, images)
    with TritonServer(args.repository, grpc_port=0, metrics_port=0, log_path=args.log) as server:
        served = describe(server.grpc_address)
        sides: dict[str, Callable[[], float]] = {
            "sequential, spinning": lambda: measure_loop(local.sequential(spinning=True), args.seconds),
            "sequential, sleeping": lambda: measure_loop(local.sequential(spinning=False), args.seconds),
            "overlapped": lambda: measure_loop(local.overlapped(), args.seconds),
        }
        for pattern in PATTERNS:
            sides[pattern.name] = _served_side(server.grpc_address, pattern, images, served.spec.embedding_dim, args)
        rates = paired_timing.in_turn(sides, args.rounds, "{}: {:.1f} images/s")
    rates["sequential"] = [max(pair) for pair in zip(*(rates[name] for name in SEQUENTIAL), strict=True)]
    return {"rates": rates, "server": {"triton": served.version, "spec": asdict(served.spec)}}


def _served_side(
    address: str, pattern: Pattern, images: Images, dim: int, args: argparse.Namespace
) -> Callable[[], float]:
    return lambda: measure_served(address, pattern, images, dim, args.seconds)


def compare(rates: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Per pattern and baseline: the ratio in every round, its median and its spread, and what was expected."""
    return [
        {
            "pattern": pattern.name,
            "baseline": baseline,
            "expected": expected,
            "ratio": statistics.median(ratios := _ratios(rates[pattern.name], rates[baseline])),
            "lowest": min(ratios),
            "highest": max(ratios),
            "ratios": ratios,
        }
        for pattern in PATTERNS
        for baseline, expected in pattern.expected.items()
    ]


def _ratios(served: Sequence[float], baseline: Sequence[float]) -> list[float]:
    return [ours / theirs for ours, theirs in zip(served, baseline, strict=True)]


def _render(rates: dict[str, list[float]], comparison: list[dict[str, Any]]) -> str:
    rows = [(name, f"{statistics.median(values):.1f}") for name, values in rates.items()]
    ratios = [
        (
            f"{row['pattern']} / {row['baseline']}",
            *(f"{row[key]:.3f}" for key in ("ratio", "lowest", "highest", "expected")),
        )
        for row in comparison
    ]
    return "\n\n".join(
        (
            format_table(("median of the rounds", "images/s"), rows),
            format_table(("served / in one process", "median", "lowest", "highest", "expected"), ratios),
        )
    )


def _default_output() -> Path:
    return RESULTS / f"served_vs_inprocess-{cpu_slug()}-{len(os.sched_getaffinity(0))}-cores.json"


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Served throughput over the same work in one process.")
    parser.add_argument("--repository", type=Path, required=True, help="what `tritonclip export` wrote")
    parser.add_argument("--rounds", type=int, default=5, help="an odd number gives a measured median (5)")
    parser.add_argument("--seconds", type=float, default=10.0, help="measured time per side and round (10)")
    parser.add_argument("--images", type=Path, help="a folder of images; default: drawn JPEGs")
    parser.add_argument("--log", type=Path, help="the server's log (default: beside the repository)")
    parser.add_argument("--json", type=Path, default=_default_output(), help="default: %(default)s")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write; 1 when a pattern misses the target against the sequential baseline."""
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
        print(f"warning: the machine is {busy_before:.0%} busy already; the ratios will not hold", file=sys.stderr)
    measured = run_rounds(args, images)
    comparison = compare(measured["rates"])
    print(_render(measured["rates"], comparison))
    record = {
        "measured_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "machine_busy_before": busy_before,
        "versions": describe_versions(),
        "images": images.describe(),
        "seconds": args.seconds,
        "rounds": args.rounds,
        "target": TARGET,
        "images_per_s": measured["rates"],
        "comparison": comparison,
        "server": measured["server"],
    }
    write_json(args.json, record)
    missed = [row for row in comparison if row["baseline"] == "sequential" and row["ratio"] < TARGET]
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
