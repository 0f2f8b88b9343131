"""A series of `tritonclip bench gpu`: what is measured, what ends it, and of what no speed is told."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tritonclip_bench.gpu.device import Device
from tritonclip_bench.gpu.runtimes import UnavailableError
from tritonclip_bench.gpu.series import Effort, Series, run_series
from tritonclip_bench.gpu.subject import Case
from tritonclip_export.errors import EngineError

CPU = Device("cpu", "a CPU")
EFFORT = Effort((1, 2, 4), 2, 0.001)
UNITS = np.eye(3, 8, dtype=np.float32)
CASE = Case("image", None, Path("model.onnx"), np.arange(3, dtype=np.uint8)[:, None], UNITS, 1000, 400, 100)


class Embedder:
    """A runtime that knows the answers; `breaks` is what it raises from a batch of two on."""

    def __init__(self, breaks: Exception | None = None, spoil: float = 0.0) -> None:
        self.breaks, self.spoil = breaks, spoil

    def place(self, batch: np.ndarray) -> Embedder:
        self.batch = batch
        return self

    def run(self) -> None:
        if self.breaks is not None and len(self.batch) > 1:
            raise self.breaks
        time.sleep(0.001)

    def wait(self) -> None:
        pass

    def result(self) -> np.ndarray:
        return np.roll(UNITS[self.batch[:, 0]], len(self.batch) > 1 and self.spoil, axis=1)


def measured(runtime: Any) -> Series:
    def open_runtime() -> Any:
        if isinstance(runtime, Exception):
            raise runtime
        return runtime

    series = Series(CASE.name, "image", None, "a runtime")
    run_series(series, CASE, open_runtime, "float16", CPU, EFFORT)
    return series


def test_a_series_has_every_batch_and_its_rate() -> None:
    series = measured(Embedder())
    assert (series.status, series.note) == ("measured", "")
    assert [(point.batch, point.cosine_min) for point in series.points] == [(1, 1), (2, 1), (4, 1)]
    for point in series.points:
        rate = point.items_per_s
        assert rate.lowest <= rate.median <= rate.highest < point.batch / 0.001
        assert rate.median > point.batch / 0.1


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "ended"),
        (RuntimeError("Failed to allocate memory for requested buffer of size 7"), "ended"),
        (MemoryError(), "ended"),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), "ended"),
        (EngineError("the engine failed"), "failed"),
        (RuntimeError("an illegal memory access was encountered"), "failed"),
    ],
)
def test_what_breaks_at_a_batch_ends_its_series_alone(error: Exception, status: str) -> None:
    series = measured(Embedder(breaks=error))
    assert [point.batch for point in series.points] == [1]
    assert series.status == status
    assert series.note.startswith("batch 2: ")
    assert str(error) in series.note


def test_a_batch_that_an_engine_was_not_built_for_ends_its_series() -> None:
    class Small(Embedder):
        def place(self, batch):
            if len(batch) > 1:
                raise EngineError("the engine refuses pixels of shape (2,)")
            return super().place(batch)

    series = measured(Small())
    assert ([point.batch for point in series.points], series.status) == ([1], "ended")


def test_a_note_names_no_machine() -> None:
    fault = RuntimeError("CUDA failure 700: illegal access ; GPU=0 ; hostname=my-box ; file=x.cc")
    assert "my-box" not in measured(Embedder(breaks=fault)).note


def test_of_a_wrong_answer_no_speed_is_told() -> None:
    series = measured(Embedder(spoil=1))
    assert [point.batch for point in series.points] == [1]
    assert series.status == "failed"
    assert "batch 2: a wrong answer: cosine 0.000000" in series.note


@pytest.mark.parametrize("error", [UnavailableError("no such library"), EngineError("no such library")])
def test_a_runtime_that_is_not_there_is_skipped(error: Exception) -> None:
    series = measured(error)
    assert (series.status, series.note, series.points) == ("skipped", "no such library", [])


def test_a_runtime_that_does_not_open_is_a_failure() -> None:
    assert measured(ValueError("a fault")).status == "failed"
