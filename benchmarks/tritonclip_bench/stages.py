"""Where the time goes: what Triton counted of each model between two moments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tritonclip_bench.endpoint import ENTRY_POINTS, PROBE_TIMEOUT_S
from tritonclip_client.table import format_table

# Triton's name of each part of a request's time, and that in the report.
PARTS = {"queue": "queue_ms", "compute_input": "input_ms", "compute_infer": "compute_ms", "compute_output": "output_ms"}
COLUMNS = ("stage", "requests", "mean batch", "queue ms", "input ms", "compute ms", "output ms", "all ms", "cached")

# Of each entry point but `clip`: the step before its encoder, and the encoder.
STEPS = {"embed_image": ("preprocess", "image_encoder"), "embed_text": ("tokenizer", "text_encoder")}

Counters = Mapping[str, dict[str, int]]


def read_counters(stub: service_pb2_grpc.GRPCInferenceServiceStub) -> Counters | None:
    """What the server has counted of every model since it started; None where it does not answer."""
    try:
        answer = stub.ModelStatistics(service_pb2.ModelStatisticsRequest(), timeout=PROBE_TIMEOUT_S)
    except grpc.RpcError:
        return None
    return {model.name: _counters(model) for model in answer.model_stats}


def _counters(model: Any) -> dict[str, int]:
    kinds = ("success", "fail", *PARTS, "cache_hit")
    of = {kind: getattr(model.inference_stats, kind) for kind in kinds}
    counts = {f"{kind}_count": of[kind].count for kind in kinds}
    nanoseconds = {f"{kind}_ns": of[kind].ns for kind in kinds}
    return {**counts, **nanoseconds, "items": model.inference_count, "batches": model.execution_count}


def stages(before: Counters | None, after: Counters | None) -> dict[str, dict[str, float]]:
    """Means of every model that was asked in between, for JSON; empty where a count is missing.

    By model: `requests`, `failures`, `mean_batch` (items of an execution), `cached` (answers from the response cache),
    and milliseconds of a good request: `total_ms`, of which `queue_ms` waiting, `input_ms` and `output_ms` moving
    tensors, `compute_ms` in the model. An ensemble's parts are sums over its steps, so its `total_ms` alone is told.
    """
    if before is None or after is None:
        return {}
    changes = {
        name: {key: value - before.get(name, {}).get(key, 0) for key, value in counters.items()}
        for name, counters in after.items()
    }
    asked = {name: change for name, change in changes.items() if change["success_count"] or change["fail_count"]}
    return {name: _means(change) for name, change in sorted(asked.items())}


def with_late_answers(measured: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """`measured` with the whole time of encoders in the Python backend.

    Such an encoder takes a request and answers it later, so that later ones can join its batch, and Triton stops
    counting when it was taken. What its ensemble took and the step before it did not is its own, and the scheduling
    between them. Where other models ask the encoders too, it cannot be told whose it is, and `measured` stays.
    """
    made = {name: dict(stage) for name, stage in measured.items()}
    if any(name == "clip" or name.startswith("classify_") for name in made):
        return made
    for entry, (before, encoder) in STEPS.items():
        if not (entry in made and before in made and made.get(encoder, {}).get("requests")):
            continue
        stage = made[encoder]
        spent_ms = (
            made[entry]["total_ms"] * made[entry]["requests"] - made[before]["total_ms"] * made[before]["requests"]
        )
        stage["total_ms"] = spent_ms / stage["requests"]
        stage["compute_ms"] = stage["total_ms"] - stage["queue_ms"] - stage["input_ms"] - stage["output_ms"]
    return made


def _means(change: Mapping[str, int]) -> dict[str, float]:
    requests = change["success_count"]
    cached = change["cache_hit_count"]
    means = {
        "requests": requests,
        "failures": change["fail_count"],
        "mean_batch": change["items"] / change["batches"] if change["batches"] else 0.0,
        "cached": cached,
        "total_ms": _mean_ms(change["success_ns"], requests),
    }
    # An answer from the cache waited for nothing and computed nothing.
    return means | {name: _mean_ms(change[f"{part}_ns"], requests - cached) for part, name in PARTS.items()}


def _mean_ms(nanoseconds: int, count: int) -> float:
    return nanoseconds / count / 1e6 if count else 0.0


def render(measured: Mapping[str, Mapping[str, float]], by_model: Mapping[str, Mapping[str, Any]]) -> str:
    """The stages as a table, and for each entry point how much of what clients waited was the server's."""
    rows = [_row(name, stage) for name, stage in measured.items() if name not in ENTRY_POINTS]
    lines = [
        f"{name}: {measured[name]['total_ms']:.1f} ms in the server, {summary['latency_ms']['mean']:.1f} ms for clients"
        for name, summary in by_model.items()
        if name in measured and summary["latency_ms"]
    ]
    return "\n".join([format_table(COLUMNS, rows), "", *lines])


def _row(name: str, stage: Mapping[str, float]) -> Sequence[str]:
    times = (f"{stage[key]:.2f}" for key in (*PARTS.values(), "total_ms"))
    return (name, f"{stage['requests']:.0f}", f"{stage['mean_batch']:.1f}", *times, f"{stage['cached']:.0f}")
