"""How many small requests a second the load generator itself sustains, so that it is not what is measured.

    python benchmarks/generator_capacity.py

The other side is a real tritonserver that has nothing to compute: the demo's repository, with Triton's response cache
switched on at the ensembles `embed_image` and `embed_text`. Few images and few texts are sent again and again, so
that after the first round Triton's C++ core answers from memory, with the right embedding, and no model runs. That is
chosen over a no-op in the Python backend, which takes longer for a request than the load generator does, over Triton's
`identity` backend, which the embedded server does not have, and over a server of our own in Python, which would take
more CPU than its clients. What is sent goes through the very locustfile of `tritonclip bench`, and every answer is
checked.

The figure is requests over the CPU seconds that the load generator used: what one core would sustain. The rate itself
is told too; where clients and server share few cores it is lower, because the server needs its share.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psutil

from paired_timing import RESULTS
from tritonclip_bench.cli_types import count
from tritonclip_bench.demo import DEMO, check_checkout, export_repository
from tritonclip_bench.errors import BenchError
from tritonclip_bench.files import check_writable, write_json
from tritonclip_bench.load.loadrun import LoadPlan, run_load
from tritonclip_bench.machine import cpu_slug, describe_machine, describe_versions
from tritonclip_client.table import format_table
from tritonclip_serve.errors import ServeError
from tritonclip_serve.server import TritonServer

TARGET = 1500
USERS = 16
WARMUP_S = 3
QUIET_SHARE = 0.1
CACHE = "response_cache { enable: true }\n"
COLUMNS = ("", "requests/s", "generator cores", "requests per core second", "expected", "p99 ms", "machine busy")


@dataclass(frozen=True)
class Case:
    """One way of sending small requests.

    Attributes:
        scenario: of `SCENARIOS`.
        processes: of the load generator.
        expected: requests per CPU second, predicted before the first measurement on two cores of an EPYC.
    """

    scenario: str
    processes: int
    expected: int

    @property
    def name(self) -> str:
        """For the table and the JSON."""
        return f"{self.scenario}, {self.processes} process{'es' if self.processes > 1 else ''}"


# A unary call of grpcio costs about 0.3 ms of CPU, making and checking a request 0.1 ms, and locust's event the rest.
# Two processes on two cores share them with the server.
CASES = (Case("text", 1, 1700), Case("image", 1, 1600), Case("text", 2, 1600), Case("image", 2, 1500))


def make_no_op(repository: Path) -> None:
    """Export the demo to `repository` and have its ensembles answered from the response cache."""
    export_repository(repository)
    for model in ("embed_image", "embed_text"):
        config = repository / model / "config.pbtxt"
        config.write_text(config.read_text(encoding="utf-8") + CACHE, encoding="utf-8")


def measure(address: str, case: Case, seconds: int) -> dict[str, Any]:
    """What the load generator reached, for JSON.

    Raises:
        BenchError: a request failed, so that it is no no-op.
    """
    plan = LoadPlan(
        address=address,
        scenario=case.scenario,
        users=USERS,
        duration_s=seconds,
        warmup_s=WARMUP_S,
        deadline_s=30,
        batch_size=1,
        labels=1,
        seed=0,
        repeat_texts=True,
        images=DEMO / "images",
    )
    results = run_load(replace(plan, processes=case.processes), progress=False)
    total = results["total"]
    if results.get("broken") or total["failures"]:
        raise BenchError(
            f"{case.name}: {results.get('broken') or total['failure_reasons']}; every request has to succeed"
        )
    computed = {name: stage["requests"] for name, stage in results["stages"].items() if name.endswith("_encoder")}
    return {
        "requests_per_s": total["requests_per_s"],
        "generator_cores": results["client_cpu_cores_total"],
        "requests_per_core_second": total["requests_per_s"] / results["client_cpu_cores_total"],
        "latency_ms": total["latency_ms"],
        "machine_cpu_share": results["machine_cpu_share"],
        # Of the models behind the cache; none, or it was no no-op.
        "computed": computed,
        "client": results.get("client"),
    }


def _render(measured: dict[str, dict[str, Any]]) -> str:
    rows = [
        (
            case.name,
            f"{found['requests_per_s']:.0f}",
            f"{found['generator_cores']:.2f}",
            f"{found['requests_per_core_second']:.0f}",
            str(case.expected),
            f"{found['latency_ms']['p99']:.1f}",
            f"{found['machine_cpu_share']:.0%}",
        )
        for case in CASES
        if (found := measured.get(case.name))
    ]
    return format_table(COLUMNS, rows)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Small requests that one core of the load generator sustains.")
    parser.add_argument("--seconds", type=count("seconds"), default=15, help="measured time of each case (15)")
    parser.add_argument(
        "--json", type=Path, default=RESULTS / f"generator_capacity-{cpu_slug()}.json", help="default: %(default)s"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write; 1 when a case misses the target."""
    args = _arguments(argv)
    try:
        return _run(args)
    except (BenchError, ServeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _run(args: argparse.Namespace) -> int:
    check_writable(args.json)
    check_checkout()
    busy_before = psutil.cpu_percent(interval=2.0) / 100
    if busy_before > QUIET_SHARE:
        print(f"warning: the machine is {busy_before:.0%} busy already", file=sys.stderr)
    measured: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="tritonclip-capacity-") as folder:
        repository = Path(folder) / "repository"
        make_no_op(repository)
        with TritonServer(repository, grpc_port=0, metrics_port=0) as server:
            for case in CASES:
                measured[case.name] = measure(server.grpc_address, case, args.seconds)
                print(f"{case.name}: {measured[case.name]['requests_per_core_second']:.0f}", file=sys.stderr)
    print(_render(measured))
    missed = [name for name, found in measured.items() if found["requests_per_core_second"] < TARGET]
    record = {
        "measured_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "machine_busy_before": busy_before,
        "versions": describe_versions(),
        "seconds": args.seconds,
        "users": USERS,
        "target": TARGET,
        "expected": {case.name: case.expected for case in CASES},
        "measured": measured,
        "missed": missed,
    }
    write_json(args.json, record)
    print(f"\n{'missed' if missed else 'reached'}: {TARGET} requests per core second", *missed, sep="\n  ")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
