"""Does the load test say the same twice? The same setting measured two times, each with its printed spread.

    python benchmarks/repeatability.py --repository work/vit-b-32

Runs `tritonclip bench --runs 5` twice on one server, and asks whether the two means differ by more than the 95 %
interval of their difference (Welch's t test). Of twenty such comparisons one says so by chance, on any machine; one
that does something else meanwhile, or grows warm, says so more often.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psutil

from paired_timing import RESULTS
from tritonclip_bench.cli_types import count
from tritonclip_bench.errors import BenchError, LoadError
from tritonclip_bench.files import check_writable, write_json
from tritonclip_bench.machine import cpu_slug, describe_machine
from tritonclip_bench.results.report import spread_line
from tritonclip_bench.results.spread import difference
from tritonclip_serve.errors import ServeError
from tritonclip_serve.server import TritonServer

QUIET_SHARE = 0.1
FIGURES = ("items_per_s", "requests_per_s")


def measure(address: str, args: argparse.Namespace, path: Path) -> dict[str, Any]:
    """The record of one `tritonclip bench`.

    Raises:
        LoadError: it did not end well; its message stands above.
    """
    command = [sys.executable, "-m", "tritonclip_client.main", "bench", "--address", address, "--json", str(path)]
    command += ["--scenario", args.scenario, "--users", str(args.users), "--runs", str(args.runs)]
    done = subprocess.run([*command, "--duration", str(args.seconds)], stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise LoadError(f"a measurement ended with status {done.returncode}; its messages are above")
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record


def compare(records: Sequence[dict[str, Any]]) -> dict[str, dict[str, float | bool | None]]:
    """Of each figure, the second record's mean less the first's (`spread.Difference`)."""
    columns = ([[run["total"][figure] for run in record["repeats"]] for record in records] for figure in FIGURES)
    return {figure: difference(*column).to_dict() for figure, column in zip(FIGURES, columns, strict=True)}


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The same setting measured twice, and whether the two agree.")
    parser.add_argument("--repository", type=Path, required=True, help="what `tritonclip export` wrote")
    parser.add_argument("--scenario", default="image", help="of `tritonclip bench` (image)")
    parser.add_argument("--users", type=count("users"), default=8, help="requests in flight (8)")
    parser.add_argument("--seconds", type=count("seconds"), default=20, help="measured time of a run (20)")
    parser.add_argument("--runs", type=count("runs"), default=5, help="of each of the two measurements (5)")
    parser.add_argument("--log", type=Path, help="the server's log (default: beside the repository)")
    parser.add_argument("--json", type=Path, default=RESULTS / f"repeatability-{cpu_slug()}.json", help="%(default)s")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write; 1 when the two differ by more than their noise."""
    args = _arguments(argv)
    try:
        return _run(args)
    except (BenchError, ServeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _run(args: argparse.Namespace) -> int:
    check_writable(args.json)
    if args.runs < 2:
        raise BenchError("--runs 1; one run has no spread; give 2 or more")
    busy_before = psutil.cpu_percent(interval=2.0) / 100
    if busy_before > QUIET_SHARE:
        print(f"warning: the machine is {busy_before:.0%} busy already", file=sys.stderr)
    with (
        tempfile.TemporaryDirectory(prefix="tritonclip-repeatability-") as folder,
        TritonServer(args.repository, grpc_port=0, metrics_port=0, log_path=args.log) as server,
    ):
        records = [measure(server.grpc_address, args, Path(folder) / f"{number}.json") for number in range(2)]
    compared = compare(records)
    found = compared["items_per_s"]
    print(*("".join(spread_line(record)).strip() for record in records), sep="\n")
    verdict = "differ by MORE than their noise" if found["exceeds_noise"] else "agree within their noise"
    print(f"the two {verdict}: {found['value']:+.2f} items/s, ± {found['half_width']:.2f} (95 % confidence)")
    write_json(
        args.json,
        {
            "measured_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "machine": describe_machine(),
            "machine_busy_before": busy_before,
            "compared": compared,
            "records": records,
        },
    )
    return 1 if found["exceeds_noise"] else 0


if __name__ == "__main__":
    sys.exit(main())
