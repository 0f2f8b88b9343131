"""What is measured on: a CUDA GPU, or this machine's CPU with the same code. torch is imported when one is opened."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tritonclip_bench.errors import BenchError
from tritonclip_bench.machine import cpu_model
from tritonclip_export.local_gpu import visible_gpus

KINDS = ("cuda", "cpu")
PROVIDERS = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
VARIABLE = "TRITONCLIP_DEVICE"
_SMI_FIELDS = ("driver_version", "memory.total", "power.limit", "clocks.max.sm")
_OUT_OF_MEMORY = (
    *("out of memory", "failed to allocate memory", "can't allocate memory", "bad allocation"),
    *("is smaller than requested bytes", "alloc_failed", "bad_alloc"),
)

Work = Callable[[], object]
# Seconds a call of `Work`, called so many times.
Clock = Callable[[Work, int], float]


class NoDeviceError(BenchError):
    """The device that was asked for is not there; the message says what is missing."""


@dataclass(frozen=True)
class Spread:
    """Several measurements of one thing."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Of at least one value."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Device:
    """One device; make it with `open_device`.

    Attributes:
        kind: one of KINDS, and torch's name of it.
        name: as its driver, or the kernel, gives it.
    """

    kind: str
    name: str

    @property
    def provider(self) -> str:
        """ONNX Runtime's name of it."""
        return PROVIDERS[self.kind]

    def wait(self) -> None:
        """Until all that it was given is done."""
        if self.kind == "cuda":
            import torch

            torch.cuda.synchronize()

    def clock(self, work: Work, calls: int) -> float:
        """Seconds a call of what torch puts on the device: between two events in its queue, on a CPU by the clock."""
        if self.kind == "cpu":
            return wall_clock(work, calls)
        import torch

        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(calls):
            work()
        end.record()
        end.synchronize()
        milliseconds: float = begin.elapsed_time(end)
        return milliseconds / 1000 / calls

    @contextmanager
    def chosen(self) -> Iterator[None]:
        """Encoders of ours that start inside run on this device or not at all (see the encoders' `clip_onnx.py`)."""
        before = os.environ.get(VARIABLE)
        os.environ[VARIABLE] = self.kind
        try:
            yield
        finally:
            del os.environ[VARIABLE]
            if before is not None:
                os.environ[VARIABLE] = before

    def multiplies(self, dtype: str) -> bool:
        """Whether its own units do; of bfloat16 before Ampere there are none, and it is emulated."""
        if dtype != "bfloat16":
            return True
        import torch

        return self.kind == "cuda" and torch.cuda.get_device_capability(0) >= (8, 0)

    def release(self) -> None:
        """Give the memory back that torch keeps for later."""
        if self.kind == "cuda":
            import torch

            torch.cuda.empty_cache()

    def describe(self) -> dict[str, Any]:
        """What a result depends on; of a GPU the driver's own words, or what torch knows where nvidia-smi is not."""
        described: dict[str, Any] = {"kind": self.kind, "name": self.name}
        if self.kind == "cuda":
            import torch

            properties = torch.cuda.get_device_properties(0)
            described |= {"cuda": torch.version.cuda, "memory_gib": round(properties.total_memory / 2**30, 1)}
            described |= {"compute_capability": f"{properties.major}.{properties.minor}"}
            described |= {"multiprocessors": properties.multi_processor_count}
            gpus = visible_gpus(*_SMI_FIELDS)
            described |= {"nvidia_smi": dict(zip(_SMI_FIELDS, gpus[0][3:], strict=True))} if gpus else {}
        return described


def open_device(kind: str) -> Device:
    """The first GPU, or the CPU.

    Raises:
        NoDeviceError: PyTorch sees no GPU; says what it was built for.
    """
    if kind == "cpu":
        return Device(kind, cpu_model())
    import torch

    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        raise NoDeviceError(
            f"--device cuda: PyTorch {torch.__version__}, {built}, sees no GPU; run where nvidia-smi lists one "
            "(CUDA 13 wants driver 580 or later) with PyTorch built for CUDA, or give --device cpu"
        )
    return Device(kind, torch.cuda.get_device_name(0))


def wall_clock(work: Work, calls: int) -> float:
    """Seconds a call of `work`, which returns when it is done."""
    begin = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - begin) / calls


def measure(work: Work, clock: Clock, rounds: int, seconds: float) -> Spread:
    """Seconds a call of `work`: `rounds` times about `seconds` each, after a round that does not count."""
    clock(work, 1)
    calls = max(1, math.ceil(seconds / max(clock(work, 1), 1e-9)))
    clock(work, calls)
    return Spread.of([clock(work, calls) for _ in range(rounds)])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it says, in the words of torch, ONNX Runtime or CUDA, that memory ran out."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in _OUT_OF_MEMORY)
