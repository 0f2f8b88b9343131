"""The served demo gives the answers of its PyTorch model with the adapter unmerged, image by image."""

from __future__ import annotations

import pytest

from demo_accuracy import SETS, compare
from tritonclip_serve import TritonServer

# Least share of right answers per set, a little below what figures.json promises of a larger sample.
LEAST = {
    "original, seen": 0.93,
    "original, held-out": 0.75,
    "shifted, seen": 0.9,
    "shifted, held-out": 0.75,
}


def test_answers_are_pytorchs_own(server: TritonServer) -> None:
    rows = compare(server.grpc_address, 80)
    assert [row["images"] for row in rows] == [f"{domain}, {split}" for split, domain in SETS]
    for row in rows:
        assert row["different_answers"] == 0, row
        assert row["accuracy_served"] == row["accuracy_torch"] >= LEAST[row["images"]], row
        assert row["max_embedding_difference"] == pytest.approx(0, abs=1e-2), row
