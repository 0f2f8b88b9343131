"""Exact percentiles and exact counts from raw response times."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

PERCENTILES = {"p50": 50.0, "p95": 95.0, "p99": 99.0}
# Of the distribution: a bin is 12 % wide, and begins at the same time in every result.
BINS_PER_DECADE = 20
SHORTEST_MS = 1e-3

Times = Sequence[float] | NDArray[np.float64]


def summarize_ms(latencies_ms: Times) -> dict[str, float] | None:
    """mean, p50, p95, p99 and max of response times in milliseconds; None where there are none.

    A percentile is the nearest rank: the smallest measured time that at least that share of the
    requests did not exceed. It is always a time that was measured, never an interpolation or a bucket.
    """
    times = np.asarray(latencies_ms, dtype=np.float64)
    if not times.size:
        return None
    ranks = np.percentile(times, list(PERCENTILES.values()), method="inverted_cdf")
    return {
        "mean": float(times.mean()),
        **dict(zip(PERCENTILES, map(float, ranks), strict=True)),
        "max": float(times.max()),
    }


def distribution(latencies_ms: Times) -> dict[str, list[float] | list[int]] | None:
    """How many response times fall between which, in logarithmic bins; None where there are none.

    `edges_ms` has one entry more than `counts`. The edges are powers of 10 ** (1 / BINS_PER_DECADE), so that the bins
    of two results are the same or apart. A time below SHORTEST_MS counts as that.
    """
    times = np.asarray(latencies_ms, dtype=np.float64)
    if not times.size:
        return None
    places = np.floor(np.log10(np.maximum(times, SHORTEST_MS)) * BINS_PER_DECADE).astype(np.int64)
    first, last = int(places.min()), int(places.max())
    edges = 10.0 ** (np.arange(first, last + 2) / BINS_PER_DECADE)
    return {"edges_ms": edges.tolist(), "counts": np.bincount(places - first).tolist()}
