"""Where the time goes: what Triton counted of each model between two moments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tritonclip_bench.server.endpoint import PROBE_TIMEOUT_S
from tritonclip_bench.server.metrics import Metrics, change

# Triton's name of each part of a request's time, and that in the report.
PARTS = {"queue": "queue_ms", "compute_input": "input_ms", "compute_infer": "compute_ms", "compute_output": "output_ms"}
# Names of the counters that the encoders and `preprocess` of our repositories export, without prefix and `_total`.
ENCODER_PREFIX = "tritonclip_encoder_"
ENCODER_COUNTS = ("requests", "items", "batches", "queue_seconds", "compute_seconds")
IMAGES_PREFIX, IMAGES_COUNTS = "tritonclip_preprocess_", ("images", "decode_seconds", "resize_seconds")

# Of each entry point but `clip`: the step before its encoder, and the encoder.
STEPS = {"embed_image": ("preprocess", "image_encoder"), "embed_text": ("tokenizer", "text_encoder")}

Counters = Mapping[str, dict[str, int]]


def read_counters(stub: service_pb2_grpc.GRPCInferenceServiceStub) -> Counters | None:
    """What the server has counted of every model since it started; None where it does not answer."""
    try:
        answer = stub.ModelStatistics(service_pb2.ModelStatisticsRequest(), timeout=PROBE_TIMEOUT_S)
    except grpc.RpcError:
        return None
    found: dict[str, dict[str, int]] = {}
    for model in answer.model_stats:
        # A model may be loaded in several versions.
        others = found.get(model.name, {})
        found[model.name] = {key: value + others.get(key, 0) for key, value in _counters(model).items()}
    return found


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
    changes = {name: _went_up(before.get(name, {}), counters) for name, counters in after.items()}
    asked = {name: change for name, change in changes.items() if change["success_count"] or change["fail_count"]}
    return {name: _means(change) for name, change in sorted(asked.items())}


def _went_up(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    """How far a model's counts went up. Those of one that was loaded anew begin at 0, and are counted from there."""
    if any(after[key] < value for key, value in before.items()):
        return dict(after)
    return {key: value - before.get(key, 0) for key, value in after.items()}


def with_late_answers(measured: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """`measured` with the whole time of encoders in the Python backend.

    Such an encoder takes a request and answers it later, so that later ones can join its batch, and Triton stops
    counting when it was taken. Where its own counts are unknown (`with_own_counts`), what its ensemble took and the
    step before it did not is its own, and the scheduling between them. Where other models ask the encoders too, it
    cannot be told whose it is, and `measured` stays.
    """
    made = {name: dict(stage) for name, stage in measured.items()}
    if any(name == "clip" or name.startswith("classify_") for name in made):
        return made
    for entry, (before, encoder) in STEPS.items():
        known = entry in made and before in made and made.get(encoder, {}).get("requests")
        if not known or made[encoder].get("own_counts"):
            continue
        stage = made[encoder]
        spent_ms = (
            made[entry]["total_ms"] * made[entry]["requests"] - made[before]["total_ms"] * made[before]["requests"]
        )
        stage["total_ms"] = spent_ms / stage["requests"]
        stage["compute_ms"] = stage["total_ms"] - stage["queue_ms"] - stage["input_ms"] - stage["output_ms"]
    return made


def with_own_counts(
    measured: Mapping[str, Mapping[str, float]], before: Metrics, after: Metrics
) -> dict[str, dict[str, float]]:
    """`measured` with what the models themselves counted between two readings of the server's metrics.

    An encoder in the Python backend gets its own `queue_ms` (beside that of Triton), `compute_ms`, up to the answer,
    and `mean_batch`, and is marked with `own_counts`; `preprocess` gets `decode_ms_per_item` and `resize_ms_per_item`.
    A model without counts of its own stays as it is.
    """
    made = {name: dict(stage) for name, stage in measured.items()}
    for name, own in _changes(before, after, ENCODER_PREFIX, ENCODER_COUNTS).items():
        if name in made and own["requests"] and own["batches"]:
            made[name] = _with_encoder_counts(made[name], own)
    for name, own in _changes(before, after, IMAGES_PREFIX, IMAGES_COUNTS).items():
        if name in made and own["images"]:
            for part in ("decode", "resize"):
                made[name][f"{part}_ms_per_item"] = own[f"{part}_seconds"] / own["images"] * 1000
    return made


def _changes(before: Metrics, after: Metrics, prefix: str, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """By model how far each of its counters went up."""
    counted = {name: change(before, after, prefix + name, "model") for name in names}
    models = set.intersection(*(set(by_model) for by_model in counted.values()))
    return {model: {name: by_model[model] for name, by_model in counted.items()} for model in models}


def _with_encoder_counts(stage: dict[str, float], own: Mapping[str, float]) -> dict[str, float]:
    compute_ms = own["compute_seconds"] / own["requests"] * 1000
    queue_ms = stage["queue_ms"] + own["queue_seconds"] / own["requests"] * 1000
    return stage | {
        "mean_batch": own["items"] / own["batches"],
        "queue_ms": queue_ms,
        "compute_ms": compute_ms,
        "output_ms": 0.0,  # inside the computing
        "total_ms": queue_ms + stage["input_ms"] + compute_ms,
        "own_counts": True,
    }


def outside_server_ms(
    measured: Mapping[str, Mapping[str, float]], by_model: Mapping[str, Mapping[str, Any]], client_ms: float = 0.0
) -> dict[str, float]:
    """By entry point the milliseconds of a request that clients waited and its ensemble did not work, for JSON.

    It is the network, scheduling on both machines, Triton's own reading and writing of messages, and in an open loop
    what was sent late. A difference of two means over requests that are not quite the same ones.

    Args:
        by_model: the summaries of what clients saw.
        client_ms: what the client itself spent inside that time, and is known: making the request and serialising it.
    """
    return {
        name: summary["latency_ms"]["mean"] - measured[name]["total_ms"] - client_ms
        for name, summary in by_model.items()
        if measured.get(name, {}).get("requests") and summary["latency_ms"]
    }


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
