"""What int8 and float16 do to the speed of ViT-B-32 on a CPU, over float32, in ONNX Runtime.

    python benchmarks/precision_speed.py

Exports the architecture with random weights in all three precisions, opens each graph as the server does, on all cores,
and runs them in turn: every round measures every precision, and every other round backwards, so that whatever else the
machine does hits all alike. A ratio is taken within a round. The cosine beside it is the smallest of any probe with
float32: speed and what it costs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import psutil

import paired_timing
from tritonclip_bench.files import check_writable, write_json
from tritonclip_bench.gpu.device import open_device
from tritonclip_bench.gpu.runtimes import served_session
from tritonclip_bench.gpu.subject import Case, open_subject
from tritonclip_bench.machine import cpu_slug, describe_machine, describe_versions
from tritonclip_client.table import format_table
from tritonclip_export.pipeline import ExportRequest, export

PRECISIONS = ("float32", "int8", "float16")
ARCHITECTURE = "ViT-B-32"
# What int8 has to reach with images in eights, on a CPU with AVX-512 VNNI.
TARGET = 2.3
# CPUs that multiply bytes natively; without, int8 is not expected to pay as much.
VNNI = ("avx512_vnni", "avx_vnni")


@dataclass(frozen=True)
class Pattern:
    """One way of calling a tower.

    Attributes:
        length: of texts; None: images.
        expected: rate over float32's by precision, predicted before the first measurement, on two cores with VNNI.
            Float16 graphs run as float32 on a CPU; they were expected to pay for casting the weights in every call,
            but ONNX Runtime casts them once.
    """

    length: int | None
    batch: int
    expected: dict[str, float]

    @property
    def name(self) -> str:
        """For tables."""
        return f"{'images' if self.length is None else f'texts of {self.length} ids'}, batch {self.batch}"


PATTERNS = (
    Pattern(None, 8, {"int8": 2.3, "float16": 0.75}),
    Pattern(None, 1, {"int8": 2.0, "float16": 0.4}),
    Pattern(16, 8, {"int8": 2.0, "float16": 0.5}),
    Pattern(77, 8, {"int8": 2.2, "float16": 0.7}),
)


def export_all(folder: Path, architecture: str) -> dict[str, Path]:
    """A repository of each precision below `folder`; one that is there already is taken as it is."""
    repositories = {precision: folder / precision for precision in PRECISIONS}
    for precision, path in repositories.items():
        if not path.exists():
            export(ExportRequest(architecture, path, random_weights=0, precision=precision))
    return repositories


def measure(repositories: dict[str, Path], rounds: int, seconds: float) -> list[dict[str, Any]]:
    """One row a pattern and precision other than float32."""
    cases = {precision: _cases(path) for precision, path in repositories.items()}
    rows: list[dict[str, Any]] = []
    for pattern in PATTERNS:
        of_pattern = {precision: cases[precision][pattern.length] for precision in PRECISIONS}
        rows.extend(_compare(pattern, of_pattern, rounds, seconds))
    return rows


def _cases(repository: Path) -> dict[int | None, Case]:
    with open_subject(repository, None, "") as subject:
        return {case.length: case for case in subject.cases}


def _compare(pattern: Pattern, cases: dict[str, Case], rounds: int, seconds: float) -> list[dict[str, Any]]:
    sides = {precision: _side(case, pattern.batch, seconds) for precision, case in cases.items()}
    rates = paired_timing.in_turn(sides, rounds, f"{pattern.name}: {{}}: {{:.1f}} items/s")
    rows = []
    for precision, expected in pattern.expected.items():
        ratios = [narrow / wide for narrow, wide in zip(rates[precision], rates["float32"], strict=True)]
        embeddings = cases[precision].expected, cases["float32"].expected
        rows.append(
            {
                "pattern": pattern.name,
                "precision": precision,
                "expected": expected,
                "ratio": statistics.median(ratios),
                "lowest": min(ratios),
                "highest": max(ratios),
                "ratios": ratios,
                "items_per_s": rates[precision],
                "items_per_s_float32": rates["float32"],
                "cosine_min": float((embeddings[0] * embeddings[1]).sum(axis=1).min()),
            }
        )
    return rows


def _side(case: Case, batch: int, seconds: float) -> Callable[[], float]:
    session = served_session(case.onnx, open_device("cpu"))
    given = {session.get_inputs()[0].name: case.batch(batch)[0]}
    return partial(_rate, lambda: session.run(None, given), batch, seconds)


def _rate(run: Callable[[], object], batch: int, seconds: float) -> float:
    """Items a second, over `seconds` after one call that finds the caches full of another graph's weights."""
    run()
    begun, calls = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - begun) < seconds:
        run()
        calls += 1
    return calls * batch / elapsed


def _render(rows: list[dict[str, Any]]) -> str:
    header = ("ViT-B-32 over float32", "precision", "median", "lowest", "highest", "expected", "cosine")
    cells = [
        (
            row["pattern"],
            row["precision"],
            *(f"{row[key]:.2f}" for key in ("ratio", "lowest", "highest", "expected")),
            f"{row['cosine_min']:.6f}",
        )
        for row in rows
    ]
    return format_table(header, cells)


def _has_vnni() -> bool:
    return any(flag in Path("/proc/cpuinfo").read_text(encoding="utf-8").split() for flag in VNNI)


def main() -> int:
    """Measure, print, write; 1 where the CPU has VNNI and int8 misses the target with images in eights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11, help="an odd number gives a measured median (11)")
    parser.add_argument("--seconds", type=float, default=1.5, help="of one precision in one round (1.5)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep the exported repositories here")
    default = paired_timing.RESULTS / f"precision_speed-{cpu_slug()}-{len(os.sched_getaffinity(0))}-cores.json"
    parser.add_argument("--json", type=Path, default=default, help="default: %(default)s")
    args = parser.parse_args()
    check_writable(args.json)
    with tempfile.TemporaryDirectory(prefix="tritonclip-precision-") as folder:
        repositories = export_all(args.work or Path(folder), ARCHITECTURE)
        busy_before = psutil.cpu_percent(interval=2.0) / 100
        rows = measure(repositories, args.rounds, args.seconds)
    print(_render(rows))
    record = {
        "measured_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "architecture": ARCHITECTURE,
        "machine": {**describe_machine(), "vnni": _has_vnni()},
        "machine_busy_before": busy_before,
        "versions": describe_versions(),
        "rounds": args.rounds,
        "seconds": args.seconds,
        "target": TARGET,
        "patterns": [asdict(pattern) for pattern in PATTERNS],
        "comparison": rows,
    }
    write_json(args.json, record)
    return int(_has_vnni() and rows[0]["ratio"] < TARGET)


if __name__ == "__main__":
    sys.exit(main())
