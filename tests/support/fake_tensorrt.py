"""A toolkit that answers with ONNX Runtime where TensorRT would with an engine: for everything around the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tritonclip_export.engine.boundary import BuildRequest, Machine
from tritonclip_export.parity.comparison import OnnxTower

H200 = Machine("10.16.1.11", "13.2", "NVIDIA H200", "9.0")
A100 = Machine("10.16.1.11", "13.2", "NVIDIA A100-SXM4-40GB", "8.0")

Embeddings = np.ndarray


@dataclass
class FakeToolkit:
    """`boundary.Toolkit`.

    Attributes:
        on: the machine it says it is.
        spoil: what it does to embeddings.
        fail: what `build` raises.
        asked: every request.
        shapes: of every batch that was embedded.
    """

    on: Machine = H200
    spoil: Callable[[Embeddings], Embeddings] = field(default=lambda embeddings: embeddings)
    fail: Exception | None = None
    asked: list[BuildRequest] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)

    def __call__(self) -> FakeToolkit:
        return self

    def machine(self) -> Machine:
        return self.on

    def build(self, request: BuildRequest) -> bytes:
        self.asked.append(request)
        if self.fail is not None:
            raise self.fail
        return f"{request.onnx}\n".encode() * 100

    def load(self, plan: Path) -> FakeEngine:
        return FakeEngine(self, OnnxTower(Path(plan.read_text().splitlines()[0])))

    def run(self, plan: Path, batches: Sequence[np.ndarray]) -> list[Embeddings]:
        engine = self.load(plan)
        return [engine.place(batch).result() for batch in batches]


@dataclass
class FakeEngine:
    """`boundary.Engine` and, of the batch that was placed last, `boundary.Placed`."""

    toolkit: FakeToolkit
    graph: OnnxTower
    batch: np.ndarray | None = None

    def place(self, batch: np.ndarray) -> FakeEngine:
        self.toolkit.shapes.append(batch.shape)
        self.batch = batch
        return self

    def run(self) -> None:
        self.graph(self.batch, len(self.batch))

    def wait(self) -> None:
        pass

    def result(self) -> Embeddings:
        return self.toolkit.spoil(self.graph(self.batch))
