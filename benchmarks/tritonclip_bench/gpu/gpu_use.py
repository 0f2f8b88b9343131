"""How busy the GPU is while something else runs, as nvidia-smi tells it."""

from __future__ import annotations

import statistics
import threading
import time
from types import TracebackType

from tritonclip_export.local_gpu import visible_gpus

_EVERY_S = 0.25
_FIELDS = ("utilization.gpu", "memory.used", "power.draw")
_KEYS = ("gpu_share", "memory_mib", "power_w")


class GpuUse:
    """Watches the first visible GPU inside a `with` block; afterwards `summary` tells what it saw."""

    def __init__(self) -> None:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._over = threading.Event()
        self._samples: list[tuple[float, list[float]]] = []
        self._ended = 0.0

    def __enter__(self) -> GpuUse:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended = time.monotonic()
        self._over.set()
        self._thread.join()

    def summary(self, last_s: float) -> dict[str, float] | None:
        """Means over the last seconds of the block: `gpu_share` (0 to 1, of the time in which any kernel ran),
        `memory_mib`, `power_w`; None: nothing was seen."""
        samples = [sample for at, sample in self._samples if at > self._ended - last_s]
        if not samples:
            return None
        means = [statistics.fmean(column) for column in zip(*samples, strict=True)]
        return dict(zip(_KEYS, (means[0] / 100, *means[1:]), strict=True))

    def _watch(self) -> None:
        while gpus := visible_gpus(*_FIELDS):
            try:
                # Each with its unit: "80 %", "1000 MiB", "300.00 W"; or "[N/A]".
                sample = [float(cell.split()[0]) for cell in gpus[0][-len(_FIELDS) :]]
                self._samples.append((time.monotonic(), sample))
            except ValueError:
                pass
            if self._over.wait(_EVERY_S):
                return
