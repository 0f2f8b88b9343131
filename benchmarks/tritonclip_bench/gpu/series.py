"""Items a second of one tower in one runtime, batch size by batch size; every batch's answer is checked first."""

from __future__ import annotations

import gc
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tritonclip_bench.errors import WrongAnswerError
from tritonclip_bench.gpu.device import Device, Spread, Work, is_out_of_memory, measure
from tritonclip_bench.gpu.runtimes import Runtime, UnavailableError
from tritonclip_bench.gpu.subject import Case
from tritonclip_export.engine.boundary import Placed
from tritonclip_export.errors import EngineError
from tritonclip_export.parity.comparison import MINIMUM_COSINE, Comparison


@dataclass(frozen=True)
class Point:
    """One batch size.

    Attributes:
        items_per_s: over the rounds.
        cosine_min: of any item, with what it should be.
    """

    batch: int
    items_per_s: Spread
    cosine_min: float


@dataclass
class Series:
    """What was measured of one tower in one runtime.

    Attributes:
        status: "measured"; "ended" by memory or the engine's profile; "skipped": the runtime is not there; "failed".
        note: why it is not "measured".
    """

    case: str
    tower: str
    length: int | None
    runtime: str
    status: str = "measured"
    note: str = ""
    points: list[Point] = field(default_factory=list)

    @property
    def best(self) -> Point | None:
        """The fastest batch size."""
        return max(self.points, key=lambda point: point.items_per_s.median, default=None)


@dataclass(frozen=True)
class Effort:
    """Which batch sizes, and how long each is measured: `rounds` times `seconds`."""

    batches: Sequence[int]
    rounds: int
    seconds: float


def run_series(
    series: Series, case: Case, open_runtime: Callable[[], Runtime], precision: str, device: Device, effort: Effort
) -> None:
    """Fill `series` in, so that what was measured before an interruption stays.

    Whatever a runtime raises ends its series and not the run: the next one may be right.
    """
    try:
        # What the runtime before it has left.
        gc.collect()
        device.release()
        runtime = open_runtime()
    except (UnavailableError, EngineError) as error:
        series.status, series.note = "skipped", str(error)
        return
    except Exception as error:
        series.status, series.note = "failed", _words(error)
        return
    for batch in effort.batches:
        try:
            # What the last batch took; a GPU that a fault has broken fails here already.
            gc.collect()
            device.release()
            series.points.append(_measure(runtime, case, batch, precision, effort))
        except Exception as error:
            no_more = is_out_of_memory(error) or isinstance(error, UnavailableError)
            series.status, series.note = ("ended" if no_more else "failed"), f"batch {batch}: {_words(error)}"
            return


def _until_done(placed: Placed, work: Work, calls: int) -> float:
    """Seconds a call, of a queue that is emptied once, at the end, as a busy server's is."""
    begin = time.perf_counter()
    for _ in range(calls):
        work()
    placed.wait()
    return (time.perf_counter() - begin) / calls


def _measure(runtime: Runtime, case: Case, batch: int, precision: str, effort: Effort) -> Point:
    """Time a batch of the probes, repeated, after its embeddings were compared with what they should be."""
    given, expected = case.batch(batch)
    try:
        placed = runtime.place(given)
    except EngineError as error:
        # A batch that the engine was not built for; what fails later is its own fault.
        raise UnavailableError(str(error)) from error
    placed.run()
    cosine = Comparison.of("", case.tower, expected, placed.result()).cosine_min
    least = MINIMUM_COSINE[precision][case.tower]
    # Written so that NaN fails too.
    if not cosine >= least:
        raise WrongAnswerError(f"a wrong answer: cosine {cosine:.6f} with float32, at least {least} is required")
    once = measure(placed.run, lambda work, calls: _until_done(placed, work, calls), effort.rounds, effort.seconds)
    return Point(batch, Spread(batch / once.median, batch / once.highest, batch / once.lowest), cosine)


def _words(error: BaseException) -> str:
    # A result names no machine: ONNX Runtime's CUDA errors do.
    told = re.sub(r"hostname=\S+ ; ", "", str(error))
    words = " ".join(told.split()) or type(error).__name__
    return words if len(words) <= 300 else f"{words[:300]} …"
