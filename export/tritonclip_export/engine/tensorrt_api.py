"""TensorRT's and pycuda's own calls, and nothing that could be elsewhere.

Never run by its authors: it needs TensorRT's libraries and a GPU. A test compares every name used here with the
binding wheels of TensorRT 10.16 and 11.4 and with pycuda's source.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tritonclip_export.engine.boundary import GIB, INSTALL, Array, BuildRequest, Embeddings, Machine, check_major
from tritonclip_export.errors import EngineError


class TensorRT:
    """`boundary.Toolkit` on the first GPU, or the one that CUDA_DEVICE names.

    Raises:
        EngineError: TensorRT, pycuda or a GPU is missing, or TensorRT is of another major version.
    """

    def __init__(self) -> None:
        self._trt = _import_tensorrt()
        self._cuda, self._device = _import_pycuda()
        self._logger = _make_logger(self._trt)
        self._used: tuple[Any, Any] | None = None

    def machine(self) -> Machine:
        """See `boundary.Toolkit`."""
        driver = self._cuda.get_driver_version()
        major, minor = self._device.compute_capability()
        return Machine(
            tensorrt=self._trt.__version__,
            cuda=f"{driver // 1000}.{driver % 1000 // 10}",
            gpu=self._device.name(),
            compute_capability=f"{major}.{minor}",
        )

    def build(self, request: BuildRequest) -> bytes:
        """See `boundary.Toolkit`."""
        trt = self._trt
        self._logger.errors.clear()
        builder = trt.Builder(self._logger)
        # Needed on 10; 11 knows nothing else, and ignores it.
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, self._logger)
        if not parser.parse_from_file(str(request.onnx)):
            why = "; ".join(str(parser.get_error(index).desc()) for index in range(parser.num_errors))
            raise EngineError(f"TensorRT {trt.__version__} cannot parse {request.onnx}: {why}")
        config = self._configure(builder, request)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise RuntimeError("; ".join(self._logger.errors) or "it gave no reason")
        _write(request.timing_cache, bytes(config.get_timing_cache().serialize()))
        return bytes(plan)

    def _configure(self, builder: Any, request: BuildRequest) -> Any:
        trt = self._trt
        config = builder.create_builder_config()
        if request.workspace_gib is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(request.workspace_gib * GIB))
        # On by default: it would round float32 to ten bits of mantissa before every product.
        config.clear_flag(trt.BuilderFlag.TF32)
        if request.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        profile = builder.create_optimization_profile()
        profile.set_shape(request.profile.input_name, *request.profile.shapes())
        config.add_optimization_profile(profile)
        timings = config.create_timing_cache(_read(request.timing_cache))
        if not config.set_timing_cache(timings, ignore_mismatch=False):
            # Of another TensorRT or GPU.
            timings = config.create_timing_cache(b"")
            config.set_timing_cache(timings, ignore_mismatch=False)
        config.progress_monitor = monitor = _make_monitor(trt)
        # The builder uses both for as long as it builds.
        self._used = timings, monitor
        return config

    def load(self, plan: Path) -> _Engine:
        """See `boundary.Toolkit`."""
        runtime = self._trt.Runtime(self._logger)
        # Version-compatible plans carry code of their own; this one was built a moment ago.
        runtime.engine_host_code_allowed = True
        engine = runtime.deserialize_cuda_engine(plan.read_bytes())
        if engine is None:
            raise EngineError(f"TensorRT cannot load {plan}: {'; '.join(self._logger.errors)}")
        context = engine.create_execution_context()
        if context is None:
            raise EngineError(f"no GPU memory is left to run {plan}: {'; '.join(self._logger.errors)}")
        return _Engine(self._trt, self._cuda, self._logger, engine, context)

    def run(self, plan: Path, batches: Sequence[Array]) -> list[Embeddings]:
        """See `boundary.Toolkit`."""
        engine = self.load(plan)
        try:
            return [_embed(engine, batch) for batch in batches]
        except self._cuda.Error as error:
            raise EngineError(f"{plan} does not run on the GPU ({error})") from error


def _embed(engine: _Engine, batch: Array) -> Embeddings:
    placed = engine.place(batch)
    placed.run()
    return placed.result()


class _Engine:
    """`boundary.Engine`; one batch at a time, as all that are placed share the context."""

    def __init__(self, trt: Any, cuda: Any, logger: Any, engine: Any, context: Any) -> None:
        self._cuda, self._logger, self._engine, self._context = cuda, logger, engine, context
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self._names = sorted(names, key=lambda name: engine.get_tensor_mode(name) != trt.TensorIOMode.INPUT)

    def place(self, batch: Array) -> _Placed:
        """See `boundary.Engine`."""
        cuda, context = self._cuda, self._context
        given, answer = self._names
        if not context.set_input_shape(given, batch.shape):
            raise EngineError(f"the engine refuses {given} of shape {batch.shape}, which its profile should hold")
        embeddings = np.empty(tuple(context.get_tensor_shape(answer)), np.float32)
        batch = np.ascontiguousarray(batch)
        inputs, outputs = cuda.mem_alloc(batch.nbytes), cuda.mem_alloc(embeddings.nbytes)
        context.set_tensor_address(given, int(inputs))
        context.set_tensor_address(answer, int(outputs))
        placed = _Placed(cuda, self._logger, context, (inputs, outputs), embeddings)
        cuda.memcpy_htod_async(inputs, batch, placed.stream)
        placed.wait()
        return placed


class _Placed:
    """`boundary.Placed`."""

    def __init__(self, cuda: Any, logger: Any, context: Any, memory: tuple[Any, Any], embeddings: Embeddings) -> None:
        self._cuda, self._logger, self._context = cuda, logger, context
        self._memory, self._embeddings = memory, embeddings
        self.stream = cuda.Stream()

    def run(self) -> None:
        """See `boundary.Placed`."""
        if not self._context.execute_async_v3(self.stream.handle):
            raise EngineError(
                f"the engine failed on a batch of {len(self._embeddings)}: {'; '.join(self._logger.errors)}"
            )

    def wait(self) -> None:
        """See `boundary.Placed`."""
        self.stream.synchronize()

    def result(self) -> Embeddings:
        """See `boundary.Placed`."""
        self._cuda.memcpy_dtoh_async(self._embeddings, self._memory[1], self.stream)
        self.wait()
        return self._embeddings.copy()


def _import_tensorrt() -> Any:
    try:
        import tensorrt
    except (ImportError, OSError) as error:
        raise EngineError(f"TensorRT cannot be imported here ({error}); {INSTALL}") from error
    check_major(tensorrt.__version__)
    return tensorrt


def _import_pycuda() -> tuple[Any, Any]:
    """The driver's API, and the GPU whose context, the one that CUDA's runtime shares, is current from now on."""
    try:
        import pycuda.driver as cuda
    except (ImportError, OSError) as error:
        raise EngineError(f"pycuda cannot be imported here ({error}); {INSTALL}") from error
    try:
        # It lets the context go when the process ends.
        import pycuda.autoprimaryctx
    except (cuda.Error, RuntimeError) as error:
        raise EngineError(f"no GPU can be used here ({error}); engines are built on the GPU that serves") from error
    return cuda, pycuda.autoprimaryctx.device


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    partial.write_bytes(content)
    partial.replace(path)


def _make_logger(trt: Any) -> Any:
    """Prints warnings, and keeps errors for the message of whatever fails."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)
            elif severity == trt.ILogger.Severity.WARNING:
                print(f"\nTensorRT: {message}", file=sys.stderr)

    return Logger()


def _make_monitor(trt: Any) -> Any:
    """One line for what the builder is at: its outermost phase, and how far that is."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self.steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self.steps:
                print(
                    f"\r\033[K  {phase_name}: {step} of {self.steps[phase_name]}", end="", file=sys.stderr, flush=True
                )
            return True

        def phase_finish(self, phase_name: str) -> None:
            if self.steps.pop(phase_name, None) is not None:
                print("\r\033[K", end="", file=sys.stderr, flush=True)

    return Monitor()
