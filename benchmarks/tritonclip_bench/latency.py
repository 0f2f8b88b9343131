"""Exact percentiles from raw response times."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

PERCENTILES = {"p50": 50.0, "p95": 95.0, "p99": 99.0}


def summarize_ms(latencies_ms: Sequence[float]) -> dict[str, float] | None:
    """mean, p50, p95, p99 and max of response times in milliseconds; None where there are none.

    A percentile is the nearest rank: the smallest measured time that at least that share of the
    requests did not exceed. It is always a time that was measured, never an interpolation or a bucket.
    """
    if not latencies_ms:
        return None
    times = np.asarray(latencies_ms, dtype=np.float64)
    ranks = np.percentile(times, list(PERCENTILES.values()), method="inverted_cdf")
    return {
        "mean": float(times.mean()),
        **dict(zip(PERCENTILES, map(float, ranks), strict=True)),
        "max": float(times.max()),
    }
