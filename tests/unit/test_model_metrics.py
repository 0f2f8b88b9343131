"""The counters of the models under `model_repository/`, with a stand-in for Triton's side of them."""

from __future__ import annotations

import gc
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "model_repository" / "image_encoder" / "1"))
from clip_jobs import Job
from clip_lanes import Lanes

ARGS = {"model_name": "image_encoder", "model_version": "3"}
SLEEP_S = 0.02


class Family:
    """A family that notes what its metrics were told."""

    COUNTER = "counter"
    told: dict[str, list[float]]

    def __init__(self, name: str, description: str, kind: str) -> None:
        assert kind == self.COUNTER
        assert description
        self.name = name

    def Metric(self, labels: dict[str, str]) -> Any:  # noqa: N802, Triton's own name
        assert labels == {"model": "image_encoder", "version": "3"}
        self.increment = self.told.setdefault(self.name, []).append
        return self


@pytest.fixture
def metrics(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module `clip_metrics`, where Triton takes counters."""
    utils = ModuleType("triton_python_backend_utils")
    monkeypatch.setitem(sys.modules, utils.__name__, utils)
    monkeypatch.setattr(Family, "told", {}, raising=False)
    monkeypatch.setattr(utils, "MetricFamily", Family, raising=False)
    monkeypatch.delitem(sys.modules, "clip_metrics", raising=False)
    import clip_metrics

    monkeypatch.setattr(clip_metrics, "PERIOD_S", 0.005)
    yield clip_metrics
    sys.modules.pop("clip_metrics")


def test_counters_follow_the_sums_and_the_last_ones_are_told(metrics: Any) -> None:
    sums = {"a": 1.0, "b": 0.0}
    made = metrics.Metrics(ARGS, {"a": "what a is", "b": "what b is"}, lambda: sums)
    deadline = time.monotonic() + 10
    while not Family.told["a"] and time.monotonic() < deadline:
        time.sleep(0.001)
    sums["a"], sums["b"] = 5.0, 2.0
    made.close()
    assert sum(Family.told["a"]) == 5.0
    assert Family.told["a"][0] == 1.0
    assert Family.told["b"] == [2.0]
    # Triton would free a counter that another instance still counts with.
    family = weakref.ref(metrics._kept[0])
    del made
    gc.collect()
    assert family() is not None


@pytest.mark.parametrize("missing", [True, False])
def test_a_server_without_metrics_serves_all_the_same(
    metrics: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], missing: bool
) -> None:
    def refuse(**_: object) -> None:
        raise RuntimeError("metrics are disabled")

    if missing:
        monkeypatch.delattr(metrics.pb_utils, "MetricFamily")
    else:
        monkeypatch.setattr(metrics.pb_utils, "MetricFamily", refuse)
        refuse.COUNTER = 0  # type: ignore[attr-defined]
    metrics.Metrics(ARGS, {"a": "what a is"}, dict).close()
    assert "image_encoder has no metrics of its own: " in capfd.readouterr().err


def test_lanes_count_requests_rows_and_where_their_time_went() -> None:
    def run(batch: np.ndarray) -> np.ndarray:
        time.sleep(SLEEP_S)
        if (batch < 0).any():
            raise ValueError("negative")
        return batch

    lanes = Lanes(run, run, 1, 4)
    came = time.monotonic() - 1.0
    lanes.submit(Job(np.ones((6, 2), np.float32), lambda _: None, came=came))
    lanes.submit(Job(-np.ones((1, 2), np.float32), lambda _: None))
    lanes.close()
    sums = lanes.sums()
    assert (sums.requests, sums.items) == (2, 7)
    assert sums.batches in (2, 3)
    assert 1.0 <= sums.queue_s < 2.0
    # Two slices for the six rows, at least one for the other request.
    assert 3 * SLEEP_S <= sums.compute_s < 1.0
