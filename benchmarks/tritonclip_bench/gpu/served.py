"""The whole server on the device: images in, embeddings out, at several numbers of users, and what limited it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritonclip_bench.errors import BenchError, LoadError
from tritonclip_bench.gpu.device import Device
from tritonclip_bench.gpu.gpu_use import GpuUse
from tritonclip_bench.gpu.subject import Subject
from tritonclip_bench.load.loadrun import LoadPlan, run_load, was_interrupted
from tritonclip_bench.results.report import CLIENT_BOUND_CORES
from tritonclip_export.settings import PYTHON
from tritonclip_serve.server import TritonServer

WARMUP_S = 3
DEADLINE_S = 60
# A tower of a GB is loaded, and a GPU warmed up.
STARTUP_S = 300
BUSY = 0.9
_RUNS_ON = re.compile(r"/(\w+_encoder)/\S+ runs on (\w+)")


class WrongProviderError(BenchError):
    """The server's encoders do not run where they should."""

    exit_code = 1


@dataclass(frozen=True)
class Load:
    """What the server is asked: numbers of users with one image each in flight, and measured seconds."""

    users: Sequence[int]
    seconds: int


def serve(subject: Subject, device: Device, load: Load, log: Path) -> Iterator[dict[str, Any]]:
    """Start a server with its encoders on `device`; yields one row a number of users.

    The embedded one, or where a repository's runtime asks for more and that is not installed, the one on PATH.

    Raises:
        WrongProviderError: an encoder runs elsewhere.
        tritonclip_serve.errors.ServeError: the server does not start.
        BenchError: the load gave no result.
    """
    options: dict[str, Any] = {"grpc_port": 0, "http_port": 0, "metrics_port": 0, "startup_timeout_s": STARTUP_S}
    with device.chosen(), TritonServer(subject.repository, log_path=log, **options) as server:
        # Other runtimes than this are on the GPU by their configs.
        if subject.spec.runtime == PYTHON:
            check_providers(log, device)
        for users in load.users:
            yield _measure(server.grpc_address, users, load.seconds, device)


def check_providers(log: Path, device: Device) -> None:
    """Read in the server's log where the encoders run.

    Raises:
        WrongProviderError: elsewhere than on `device`, or it does not say.
    """
    found = dict(_RUNS_ON.findall(log.read_text(encoding="utf-8", errors="replace")))
    if set(found) != {"image_encoder", "text_encoder"} or set(found.values()) != {device.provider}:
        raise WrongProviderError(
            f"the served encoders run on {found or 'what their log does not tell'}, not on {device.provider}; see {log}"
        )


def _measure(address: str, users: int, seconds: int, device: Device) -> dict[str, Any]:
    plan = LoadPlan(address, "image", users, seconds, WARMUP_S, DEADLINE_S, 1, 1, 0, repeat_texts=False)
    # On a CPU the GPU is somebody else's.
    with GpuUse() if device.kind == "cuda" else nullcontext() as use:
        results = run_load(plan, progress=False)
    if was_interrupted(results.get("broken")):
        raise KeyboardInterrupt
    if results.get("broken"):
        raise LoadError(results["broken"])
    total = results["total"]
    row = {
        "users": users,
        "items_per_s": total["items_per_s"],
        "latency_ms": total["latency_ms"],
        "failures": total["failures"],
        "machine_cpu_share": results["machine_cpu_share"],
        "client_cpu_cores": results["client_cpu_cores"],
        "gpu": use and use.summary(seconds),
    }
    return {**row, "limited_by": limited_by(row)}


def limited_by(row: dict[str, Any]) -> str:
    """What was busy all the time; the busiest first."""
    gpu = row["gpu"]["gpu_share"] if row["gpu"] else 0.0
    if gpu >= BUSY:
        return "the GPU: a kernel ran nearly all the time"
    if row["machine_cpu_share"] >= BUSY:
        return "the CPU cores: decode, resize, server and load generator fill them"
    if row["client_cpu_cores"] >= CLIENT_BOUND_CORES:
        return "the load generator: its one process is nearly a full core"
    return "nothing fully: more requests in flight, or the steps between the models"
