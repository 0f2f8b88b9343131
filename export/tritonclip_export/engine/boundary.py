"""What building and running an engine takes from TensorRT and CUDA, and nothing more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tritonclip_export.engine.profiles import Profile
from tritonclip_export.errors import EngineError

MAJORS = (10, 11)
GIB = 1 << 30
INSTALL = "build where they are: in NVIDIA's TensorRT container of the release that serves, after `pip install pycuda`"

Array = npt.NDArray[Any]
Embeddings = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Machine:
    """Where engines are built.

    Attributes:
        tensorrt: version, such as "10.16.1.11".
        cuda: version of the driver's CUDA, such as "13.2".
        gpu: the name that the driver gives.
        compute_capability: such as "9.0".
    """

    tensorrt: str
    cuda: str
    gpu: str
    compute_capability: str


def check_major(version: str) -> None:
    """Refuse a TensorRT whose API is another.

    Raises:
        EngineError: names the version and those that are supported.
    """
    if version.split(".")[0] not in map(str, MAJORS):
        raise EngineError(f"TensorRT {version} is installed; {' and '.join(map(str, MAJORS))} are supported; {INSTALL}")


@dataclass(frozen=True)
class BuildRequest:
    """One engine to build.

    Attributes:
        onnx: the graph; weights beside it are found by the names that it holds.
        workspace_gib: the most GPU memory that a layer may use to compute; None for all there is.
        version_compatible: the engine runs on newer TensorRT of the same major too, more slowly.
        timing_cache: a file that is read where it exists, and written; it makes the next build faster.
    """

    onnx: Path
    profile: Profile
    workspace_gib: float | None
    version_compatible: bool
    timing_cache: Path


class Placed(Protocol):
    """A batch that lies on the GPU, and room for its embeddings."""

    def run(self) -> None:
        """Start to embed the batch, once more.

        Raises:
            EngineError: the engine failed.
        """

    def wait(self) -> None:
        """Until all that was started is done."""

    def result(self) -> Embeddings:
        """Wait, and fetch the embeddings, float32 [n, D]."""


class Engine(Protocol):
    """An engine that is ready to run."""

    def place(self, batch: Array) -> Placed:
        """Copy `batch`, [n, ...] of the tower's input, to the GPU.

        Raises:
            EngineError: the profile does not hold its shape.
        """


class Toolkit(Protocol):
    """TensorRT and CUDA on this machine."""

    def machine(self) -> Machine:
        """Versions and the first GPU.

        Raises:
            EngineError: there is no GPU.
        """

    def build(self, request: BuildRequest) -> bytes:
        """Build an engine, strongly typed: every type is the graph's own; returns the plan.

        Raises:
            EngineError: the graph cannot be parsed.
            RuntimeError, MemoryError: no engine came of it.
        """

    def load(self, plan: Path) -> Engine:
        """Make `plan` ready to run.

        Raises:
            EngineError: it cannot be loaded.
        """

    def run(self, plan: Path, batches: Sequence[Array]) -> list[Embeddings]:
        """Embed each of `batches`, [n, ...] of the tower's input, as float32 [n, D].

        Raises:
            EngineError: the plan cannot be loaded or run.
        """
