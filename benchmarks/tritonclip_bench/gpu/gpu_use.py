"""How busy the GPU is while something else runs, as nvidia-smi tells it."""

from __future__ import annotations

import statistics
import subprocess
import threading
import time
from types import TracebackType

_EVERY_MS = 250
_FIELDS = ("utilization.gpu", "memory.used", "power.draw")
_KEYS = ("gpu_share", "memory_mib", "power_w")
_WAIT_S = 5.0


class GpuUse:
    """Watches the first GPU inside a `with` block; afterwards `summary` tells what it saw."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._samples: list[tuple[float, list[float]]] = []
        self._ended = 0.0

    def __enter__(self) -> GpuUse:
        query = (
            f"--query-gpu={','.join(_FIELDS)}",
            "--format=csv,noheader,nounits",
            "--id=0",
            f"--loop-ms={_EVERY_MS}",
        )
        try:
            self._process = subprocess.Popen(
                ("nvidia-smi", *query), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        except OSError:
            return self
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended = time.monotonic()
        if self._process is not None:
            self._process.terminate()
            self._process.wait(_WAIT_S)
            self._thread.join(_WAIT_S)

    def summary(self, last_s: float) -> dict[str, float] | None:
        """Means over the last seconds of the block: `gpu_share` (0 to 1, of the time in which any kernel ran),
        `memory_mib`, `power_w`; None: nothing was seen."""
        samples = [sample for at, sample in self._samples if at > self._ended - last_s]
        if not samples:
            return None
        means = [statistics.fmean(column) for column in zip(*samples, strict=True)]
        return dict(zip(_KEYS, (means[0] / 100, *means[1:]), strict=True))

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._add(line)

    def _add(self, line: str) -> None:
        try:
            sample = [float(cell) for cell in line.split(",")]
        except ValueError:  # "[N/A]"
            return
        if len(sample) == len(_FIELDS):
            self._samples.append((time.monotonic(), sample))
