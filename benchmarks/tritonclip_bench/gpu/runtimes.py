"""The same towers in every runtime that is there, behind one interface: place a batch, run it again and again."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from tritonclip_bench.errors import BenchError
from tritonclip_bench.gpu import graph
from tritonclip_bench.gpu.device import Device
from tritonclip_bench.gpu.subject import Case, Subject
from tritonclip_export.engine.boundary import Array, Engine, Placed, Toolkit
from tritonclip_export.local_gpu import records
from tritonclip_export.repository.classifier.text_tower import importable

NAMES = ("pytorch", "pytorch-compiled", "onnxruntime", "onnxruntime-copies", "tensorrt")


class UnavailableError(BenchError):
    """A runtime is not there, or does not take this device; the message says why."""


class Runtime(Protocol):
    """A tower, ready to run."""

    def place(self, batch: Array) -> Placed:
        """Put `batch` where the runtime wants it; see `boundary.Placed`."""


class TorchRuntime:
    """The tower traced by torch, in the types that are served; `compiled` by torch.compile too."""

    def __init__(self, subject: Subject, case: Case, device: Device, *, compiled: bool) -> None:
        from tritonclip_export.frameworks import torch
        from tritonclip_export.towers.torch_graph import plain_module

        if subject.modules is None:
            raise UnavailableError("a repository has no PyTorch model; measured where an architecture is given instead")
        if subject.spec.precision == "int8":
            raise UnavailableError("PyTorch has no int8 tower")
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        tower = subject.modules.towers[0 if case.tower == "image" else 1]
        module = plain_module(tower, torch.from_numpy(case.inputs[[0, 0]]), device.kind)
        self._module = torch.compile(module) if compiled else module
        self._device = device

    def place(self, batch: Array) -> Placed:
        """See `Runtime`."""
        return _TorchBatch(self._module, batch, self._device)


class _TorchBatch:
    def __init__(self, module: Any, batch: Array, device: Device) -> None:
        import torch

        self._module, self._device = module, device
        self._inference_mode = torch.inference_mode
        self._given = torch.from_numpy(batch).to(device.kind)
        self._made: Any = None

    def run(self) -> None:
        with self._inference_mode():
            self._made = self._module(self._given)

    def wait(self) -> None:
        self._device.wait()

    def result(self) -> Array:
        embeddings: Array = self._made.float().cpu().numpy()
        return embeddings


class OnnxRuntime:
    """The repository's graph in a session such as the server opens.

    Args:
        copies: take batches from and give embeddings to the CPU's memory, as the server does; else all stays on the
            device (IO binding).

    Raises:
        UnavailableError: ONNX Runtime cannot use the device, or computes floating-point numbers elsewhere.
    """

    def __init__(self, subject: Subject, case: Case, device: Device, *, copies: bool) -> None:
        session = served_session(case.onnx, device)
        if strays := graph.strays(
            graph.profile(case.onnx, case.inputs[:1], device.provider, optimized=True), device.provider
        ):
            raise UnavailableError(f"not all runs on {device.provider}: {', '.join(strays)}")
        self._place: Callable[[Any, Array, Device], Placed] = _Copied if copies else _Bound
        self._session, self._device = session, device

    def place(self, batch: Array) -> Placed:
        """See `Runtime`."""
        return self._place(self._session, batch, self._device)


class _Copied:
    def __init__(self, session: Any, batch: Array, device: Device) -> None:
        self._session, self._inputs = session, {session.get_inputs()[0].name: batch}
        self._made: Any = None

    def run(self) -> None:
        self._made = self._session.run(None, self._inputs)[0]

    def wait(self) -> None:
        """It returns when it is done."""

    def result(self) -> Array:
        embeddings: Array = self._made
        return embeddings


class _Bound:
    def __init__(self, session: Any, batch: Array, device: Device) -> None:
        import onnxruntime as ort

        self._session, self._binding = session, session.io_binding()
        # Kept, as the binding does not own it.
        self._given = ort.OrtValue.ortvalue_from_numpy(batch, device.kind, 0)
        self._binding.bind_ortvalue_input(session.get_inputs()[0].name, self._given)
        self._binding.bind_output(session.get_outputs()[0].name, device.kind, 0)

    def run(self) -> None:
        self._session.run_with_iobinding(self._binding)

    def wait(self) -> None:
        self._binding.synchronize_outputs()

    def result(self) -> Array:
        self.wait()
        embeddings: Array = self._binding.copy_outputs_to_cpu()[0]
        return embeddings


class TensorRtRuntime:
    """The engine that `tritonclip engine build` put into the repository for this GPU."""

    def __init__(self, subject: Subject, case: Case, open_toolkit: Callable[[], Toolkit]) -> None:
        built = [record for record in records(subject.manifest) if record["file"].startswith(f"{case.tower}_encoder/")]
        if not built:
            raise UnavailableError("the repository has no engines; build them with `tritonclip engine build DIR`")
        toolkit = open_toolkit()
        capability = toolkit.machine().compute_capability
        files = [subject.repository / record["file"] for record in built if record["compute_capability"] == capability]
        if not files:
            raise UnavailableError(f"the repository has no engine for compute capability {capability}")
        self._engine: Engine = toolkit.load(files[0])

    def place(self, batch: Array) -> Placed:
        """See `Runtime`."""
        return self._engine.place(batch)


def open_runtime(
    name: str, subject: Subject, case: Case, device: Device, open_toolkit: Callable[[], Toolkit]
) -> Runtime:
    """The runtime of that name, one of NAMES.

    Raises:
        UnavailableError: it cannot be used here.
        tritonclip_export.errors.EngineError: TensorRT's libraries are missing, or its engine does not load.
    """
    if name.startswith("pytorch"):
        return TorchRuntime(subject, case, device, compiled=name.endswith("compiled"))
    if name.startswith("onnxruntime"):
        return OnnxRuntime(subject, case, device, copies=name.endswith("copies"))
    if device.kind != "cuda" and not records(subject.manifest):
        raise UnavailableError("TensorRT needs a GPU")
    return TensorRtRuntime(subject, case, open_toolkit)


def served_session(onnx: Path, device: Device) -> Any:
    """The session that the repository's own encoder opens, on all cores, with the server's options.

    Raises:
        UnavailableError: ONNX Runtime cannot use the device.
    """
    with importable(onnx.parent):
        clip_onnx: Any = importlib.import_module("clip_onnx")
        if not hasattr(clip_onnx, "open_session"):
            raise UnavailableError("of an earlier version, whose encoder takes no device; export it again")
        try:
            return clip_onnx.open_session(onnx, len(os.sched_getaffinity(0)), device.kind)
        except RuntimeError as error:
            raise UnavailableError(str(error)) from error
