"""How a repository is served: what can be changed of it after an export without exporting again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from tritonclip_export.errors import RepositoryError

PYTHON, ONNXRUNTIME, TENSORRT = RUNTIMES = ("onnxruntime-python", "onnxruntime", "tensorrt")
CPU, DALI = PREPROCESSES = ("cpu", "dali")
# Of the tritonserver inside nvidia-pytriton 0.7.0.
EMBEDDED_RELEASE = "24.10"
# Before it, a composing model that turns a request away for a full queue leaves the ensemble's caller without answer.
FIRST_WITH_BOUNDED_QUEUES = "26.02"
# Requests. A second of work or so of one GPU: what comes beyond is better sent to another server.
MAX_QUEUE_SIZE = 1024

_LEAST = {
    "image_batch": 1,
    "text_batch": 1,
    "preprocess_instances": 1,
    "threads": 0,
    "encoder_instances": 1,
    "max_queue_size": 0,
    "queue_delay_us": 0,
}
# Of Triton's int32 fields.
_MOST = 2**31 - 1
# A queue's time limit is kept in microseconds, of which 0 would be no limit.
_LEAST_SECONDS, _MOST_SECONDS = 1e-6, 1e6
_RELEASE = re.compile(r"[0-9]{2}\.(0[1-9]|1[0-2])")


@dataclass(frozen=True)
class Settings:
    """What the configs say beside the serving spec.

    Attributes:
        image_batch, text_batch: items per request and per dynamic batch.
        preprocess_instances: processes that decode pictures, each on one core.
        threads: cores that a tower uses under `onnxruntime-python`; 0 takes every core the server may use.
        runtime: what runs the towers: one of RUNTIMES.
        preprocess: what decodes pictures: one of PREPROCESSES.
        release: the oldest release of tritonserver that will serve, YY.MM.
        encoder_instances: copies of a tower on each GPU; `onnxruntime-python` has one, which takes all there is.
        queue_seconds: a request that waited this long for its turn is answered UNAVAILABLE.
        max_queue_size: requests that may wait for a model, 0 for any number; None is MAX_QUEUE_SIZE where the release
            can, else any number.
        queue_delay_us: how long a batch waits to become full, microseconds; not of `onnxruntime-python`, which batches
            by itself.
        graph_batches: under `tensorrt`, batch sizes that get a CUDA graph; None is powers of two and the largest.
        pinned_memory: whether batches pass through pinned host memory on their way to and from the GPU.
        text_cache: whether embeddings of texts are kept in Triton's response cache.
    """

    image_batch: int = 32
    text_batch: int = 64
    preprocess_instances: int = 2
    threads: int = 0
    runtime: str = PYTHON
    preprocess: str = CPU
    release: str = EMBEDDED_RELEASE
    encoder_instances: int = 1
    queue_seconds: float = 20.0
    max_queue_size: int | None = None
    queue_delay_us: int = 0
    graph_batches: tuple[int, ...] | None = None
    pinned_memory: bool = True
    text_cache: bool = True

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= _MOST:
                raise RepositoryError(f"{name} is {value}; it must be at least {least} and at most {_MOST}")
        if not _LEAST_SECONDS <= self.queue_seconds <= _MOST_SECONDS:
            raise RepositoryError(
                f"queue_seconds is {self.queue_seconds:g}; it must be from {_LEAST_SECONDS:g} to {_MOST_SECONDS:g}"
            )
        if self.runtime not in RUNTIMES:
            raise RepositoryError(f"runtime is {self.runtime!r}; allowed: {', '.join(RUNTIMES)}")
        if self.preprocess not in PREPROCESSES:
            raise RepositoryError(f"preprocess is {self.preprocess!r}; allowed: {', '.join(PREPROCESSES)}")
        if not _RELEASE.fullmatch(self.release):
            raise RepositoryError(
                f"release is {self.release!r}; write the release of tritonserver as YY.MM, like 26.04"
            )
        self._check_queue()
        self._check_runtime()

    def _check_queue(self) -> None:
        if self.max_queue_size and self.release < FIRST_WITH_BOUNDED_QUEUES:
            raise RepositoryError(
                f"max_queue_size is {self.max_queue_size} for release {self.release}; before "
                f"{FIRST_WITH_BOUNDED_QUEUES} tritonserver never answers an ensemble's request that a full queue turns "
                "away. Leave it out, or give the release that will serve"
            )

    def _check_runtime(self) -> None:
        if self.runtime == PYTHON:
            for name, value, usual in (
                ("encoder_instances", self.encoder_instances, 1),
                ("queue_delay_us", self.queue_delay_us, 0),
            ):
                if value != usual:
                    raise RepositoryError(
                        f"{name} is {value} for the runtime {PYTHON}, whose one instance takes all cores and forms its "
                        f"own batches; leave it out, or choose {ONNXRUNTIME} or {TENSORRT}"
                    )
        if self.runtime != TENSORRT and self.graph_batches is not None:
            raise RepositoryError(
                f"graph_batches is given for the runtime {self.runtime}; only {TENSORRT} has CUDA graphs"
            )

    @property
    def queue_size(self) -> int:
        """Requests that may wait for a model; 0: any number."""
        if self.max_queue_size is not None:
            return self.max_queue_size
        return MAX_QUEUE_SIZE if self.release >= FIRST_WITH_BOUNDED_QUEUES else 0

    def changed(self, changes: Mapping[str, Any]) -> Settings:
        """With `changes`, by attribute; what another runtime or release does not have goes back to its default."""
        runtime = changes.get("runtime", self.runtime)
        lost: dict[str, Any] = {}
        if runtime != self.runtime:
            lost |= {"graph_batches": None} if runtime != TENSORRT else {}
            lost |= {"encoder_instances": 1, "queue_delay_us": 0} if runtime == PYTHON else {}
        if changes.get("release", self.release) < FIRST_WITH_BOUNDED_QUEUES <= self.release:
            lost["max_queue_size"] = None
        return replace(self, **{**lost, **changes})

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the manifest."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """The inverse of `to_dict`, after JSON.

        Raises:
            RepositoryError: an unknown key, or a value of another type or that is not allowed.
        """
        unknown = sorted(set(values) - {entry.name for entry in fields(cls)})
        if unknown:
            raise RepositoryError(f"the manifest's settings have {', '.join(unknown)}, unknown to this version")
        batches = values.get("graph_batches")
        try:
            return cls(**{**values, "graph_batches": None if batches is None else tuple(batches)})
        except TypeError as error:
            raise RepositoryError(f"the manifest's settings hold a value of another type ({error})") from error
