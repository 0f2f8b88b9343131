"""Triton's Prometheus metrics: where they are, what they say, and what changed between two moments."""

from __future__ import annotations

import http.client
import math
import re
import urllib.request
from collections.abc import Mapping, Sequence
from statistics import fmean

from prometheus_client.parser import text_string_to_metric_families

from tritonclip_bench.errors import BenchError
from tritonclip_client.options import is_loopback

TIMEOUT_S = 2.0
DEFAULT_PORT = 8002
MAX_BYTES = 1 << 24

# Of each metric the labels and the value of every line.
Metrics = Mapping[str, Sequence[tuple[Mapping[str, str], float]]]

# Gauges of a GPU, by their name in the results; `nv_energy_consumption` counts up.
_GPU_GAUGES = {
    "utilization": "nv_gpu_utilization",
    "memory_bytes": "nv_gpu_memory_used_bytes",
    "power_w": "nv_gpu_power_usage",
}
_ENERGY = "nv_energy_consumption"
_MACHINE_CPU = "nv_cpu_utilization"


def default_url(host: str, port: int = DEFAULT_PORT) -> str:
    """Where a server with the gRPC endpoint on `host` has its metrics."""
    return f"http://{host}:{port}/metrics"


def fetch(url: str) -> Metrics:
    """The metrics as they stand now.

    Raises:
        BenchError: nothing answers there, or not with metrics.
    """
    proxies: dict[str, str] | None = {} if is_loopback(re.sub(r"^\w+://([^/]*).*", r"\1", url)) else None
    opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies))
    try:
        with opener.open(url, timeout=TIMEOUT_S) as answer:
            return parse(answer.read(MAX_BYTES).decode("utf-8", errors="replace"))
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise BenchError(
            f"--metrics-url {url} gives no metrics ({error}); give the address of Triton's metrics, for example "
            f"{default_url('127.0.0.1')}, or leave the option out"
        ) from None


def parse(text: str) -> Metrics:
    """Prometheus' text format, by name without the `_total` of counters; values that are not finite are left out.

    Raises:
        ValueError: it is not in that format.
    """
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if math.isfinite(sample.value):
                # The library adds the suffix to counters that have none, as most of Triton's.
                found.setdefault(sample.name.removesuffix("_total"), []).append((sample.labels, sample.value))
    return found


def by_label(metrics: Metrics, name: str, label: str, **where: str) -> dict[str, float]:
    """Sums of the lines of `name` whose labels are as in `where`, by the value of `label`."""
    sums: dict[str, float] = {}
    for labels, value in metrics.get(name, ()):
        if label in labels and where.items() <= labels.items():
            sums[labels[label]] = sums.get(labels[label], 0.0) + value
    return sums


def change(before: Metrics, after: Metrics, name: str, label: str, **where: str) -> dict[str, float]:
    """How far counters went up, by the value of `label`. One that began anew counts from 0."""
    was = by_label(before, name, label, **where)
    now = by_label(after, name, label, **where)
    return {key: value - was.get(key, 0.0) if value >= was.get(key, 0.0) else value for key, value in now.items()}


def has_gpus(metrics: Metrics) -> bool:
    """Whether there are gauges of a GPU, which have to be read more than once to be known."""
    return any(name in metrics for name in _GPU_GAUGES.values())


def gpus(readings: Sequence[Metrics], items: int) -> list[dict[str, float]]:
    """Means over `readings`, in the order of time, for every GPU that the server sees, for JSON.

    Each has an `index` and, where the driver tells it, `utilization` (0 to 1), `memory_bytes`, `power_w`; from the
    counter of energy `joules`, and `joules_per_item` of the `items` that were answered meanwhile.
    """
    names = sorted({key for one in readings for metric in _GPU_GAUGES.values() for key in by_label(one, metric, UUID)})
    return [{"index": index, **_gpu(name, readings, items)} for index, name in enumerate(names)]


UUID = "gpu_uuid"


def _gpu(name: str, readings: Sequence[Metrics], items: int) -> dict[str, float]:
    gauges = {key: [by_label(one, metric, UUID).get(name) for one in readings] for key, metric in _GPU_GAUGES.items()}
    known = {key: [value for value in values if value is not None] for key, values in gauges.items()}
    told = {key: fmean(values) for key, values in known.items() if values}
    joules = change(readings[0], readings[-1], _ENERGY, UUID).get(name)
    if joules:
        told["joules"] = joules
        if items:
            told["joules_per_item"] = joules / items
    return told


def machine_cpu(readings: Sequence[Metrics]) -> float | None:
    """The busy share, 0 to 1, of all cores of the server's machine; None where the server does not say."""
    shares = [value for one in readings for _, value in one.get(_MACHINE_CPU, ())]
    return fmean(shares) if shares else None
