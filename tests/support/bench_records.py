"""Records of benchmarks as they would be measured, for tests of what reads them."""

from __future__ import annotations

import copy
import platform
import re
from typing import Any

HOSTILE = "<script>alert(1)</script>\"'&"
EDGES_MS = [10 ** (exponent / 10) for exponent in range(31)]
PRICE = {
    "price_per_hour": 0.5,
    "date": "2026-11-01",
    "source": "a list",
    "stale": None,
    "instance": "g4dn.xlarge",
    "gpu": "T4",
    "gpus": 1,
    "currency": "USD",
}


def results(items_per_s: float = 100.0, p50: float = 10.0, **changes: Any) -> dict[str, Any]:
    """Results of one run of ten seconds; `changes` replace keys."""
    counts = [0] * 30
    for index, count in enumerate((1, 5, 20, 40, 20, 10, 4), 8):
        counts[index] = count
    times = {"mean": 1.1 * p50, "p50": p50, "p95": 1.5 * p50, "p99": 2 * p50, "max": 4 * p50}
    total = {
        "requests": int(10 * items_per_s),
        "items": int(10 * items_per_s),
        "requests_per_s": items_per_s,
        "items_per_s": items_per_s,
        "latency_ms": times,
        "unanswered": 0,
        "failures": 0,
        "failure_reasons": {},
        "distribution": {"edges_ms": EDGES_MS, "counts": counts},
    }
    parts = {"queue_ms": 1.0, "input_ms": 0.1, "compute_ms": 2.0, "output_ms": 0.1}
    stage = {"requests": 1000, "failures": 0, "mean_batch": 2.5, "cached": 0, "total_ms": 3.2, **parts}
    made = {
        "window_s": 10.0,
        "total": total,
        "by_model": {"embed_image": total},
        "client_cpu_cores": 0.3,
        "machine_cpu_share": 0.9,
        "server_cpu_cores": 1.25,
        "rejected": 0,
        "broken": None,
        "open_loop": {},
        "stages": {"preprocess": stage, "image_encoder": stage, "embed_image": {**stage, "total_ms": 7.0}},
        "client": {"prepare_ms": 0.2, "serialise_ms": 0.3, "check_ms": 0.1},
        "gpus": [{"name": "NVIDIA L4", "utilization": 0.5, "memory_bytes": 2**31, "power_w": 60.0}],
        "timeline": {
            "second": list(range(10)),
            "due": [100] * 10,
            "answered": [90 + i for i in range(10)],
            "failed": [0] * 9 + [3],
            "p99_ms": [20.0] * 4 + [None] + [25.0] * 5,
        },
    }
    return copy.deepcopy(made | changes)


def load(label: str | None = "a run", items_per_s: tuple[float, ...] = (99.0, 100.0, 101.0), **changes: Any) -> Any:
    """A load record of schema 2, a repeat for each of `items_per_s`; `changes` replace keys, `p50` and `users` too."""
    p50, users = changes.pop("p50", 10.0), changes.pop("users", 8)
    repeats = [results(rate, p50 * (1 + index / 100)) for index, rate in enumerate(items_per_s)]
    plan = {
        "scenario": "image",
        "users": users,
        "rate": None,
        "batch_size": 1,
        "duration_s": 10,
        "warmup_s": 3,
        "deadline_s": 30,
        "labels": 10,
        "seed": 7,
        "images": {"source": "drawn", "count": 32, "mean_bytes": 9e4},
    }
    spec = {"name": "demo", "architecture": "ViT-B-32", "precision": "float32", "runtime": "onnxruntime-python"}
    made = {
        "schema": 2,
        "kind": "load",
        "label": label,
        "measured_at": "2026-11-21T12:34:56+00:00",
        "plan": plan,
        "server": {"triton": "2.51.0", "same_machine_as_client": True, "fingerprint": "ab12" * 16, "spec": spec},
        "client_machine": {"cpu": "A CPU", "cores": 4, "cores_usable": 2, "memory_gib": 7.8, "system": "Linux x86_64"},
        "client_versions": {"python": "3.11.7", "numpy": "1.26.4"},
        "results": repeats[len(repeats) // 2],
        "repeats": repeats,
        "warnings": [],
        "broken": None,
        "cost": {
            "dollars_per_million": 1e6 / items_per_s[len(items_per_s) // 2] * 0.5 / 3600,
            "item": "images",
            "price": PRICE,
        },
    }
    return copy.deepcopy(made | changes)


def curve(label: str | None = None) -> Any:
    """A record of kind "curve", of three steps."""
    steps = [load(f"{users} users", (50.0 * users,), p50=10.0 + users, users=users) for users in (1, 2, 4)]
    return {"schema": 2, "kind": "curve", "label": label, "measured_at": "x", "broken": None, "records": steps}


def baselines() -> Any:
    """A record of kind "baselines", of three sides."""
    sides = [load("ours"), load("theirs", (60.0, 61.0, 62.0)), load("one process", (104.0,))]
    return {"schema": 2, "kind": "baselines", "label": None, "measured_at": "x", "records": sides}


def old() -> Any:
    """A load record of schema 1."""
    made = load(None, (100.0,), schema=1, cost=None)
    for key in ("kind", "label", "repeats", "broken"):
        del made[key]
    for key in ("timeline", "client", "gpus", "rejected", "server_cpu_cores", "broken"):
        del made["results"][key]
    del made["results"]["total"]["distribution"]
    return made


def private_details(text: str) -> list[str]:
    """What in `text` tells whose machine it was: its name, absolute paths, addresses."""
    paths = r"(?<![\w.:])/(?:home|root|tmp|work|mnt|Users|var/folders)/\S+"
    private = r"\b(?:(?:10|127)\.\d{1,3}|192\.168|172\.(?:1[6-9]|2\d|3[01]))\.\d{1,3}\.\d{1,3}\b"
    addresses = rf"\b(?:\d{{1,3}}\.){{3}}\d{{1,3}}:\d+|{private}"
    name = rf"\b{re.escape(platform.node())}\b" if platform.node() not in ("", "localhost") else r"(?!)"
    return re.findall(f"{paths}|{addresses}|{name}|localhost:", text)
