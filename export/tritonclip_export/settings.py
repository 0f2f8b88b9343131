"""How a repository is served: what can be changed of it after an export without exporting again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from tritonclip_export.errors import RepositoryError

PYTHON, ONNXRUNTIME, TENSORRT = RUNTIMES = ("onnxruntime-python", "onnxruntime", "tensorrt")
EXIF_MODES = ("transpose", "ignore")
CPU, DALI = PREPROCESSES = ("cpu", "dali")
# Of the tritonserver inside nvidia-pytriton 0.7.0.
EMBEDDED_RELEASE = "24.10"
# Before it, a composing model whose queue in Triton is full leaves the ensemble's caller without answer.
FIRST_WITH_BOUNDED_QUEUES = "26.02"

_LEAST = {
    "image_batch": 1,
    "text_batch": 1,
    "preprocess_threads": 1,
    "decoder_processes": 1,
    "max_pixels": 1,
    "max_bytes": 1,
    "image_megabytes": 1,
    "threads": 0,
    "encoder_instances": 1,
    "max_queue_size": 1,
    "queue_bytes": 1,
    "queue_delay_us": 0,
    "max_text_bytes": 1,
    "max_split_rows": 1,
    "max_split_bytes": 1,
    "max_scores": 1,
}
# Of Triton's int32 fields.
_MOST = 2**31 - 1
# A queue's time limit is kept in microseconds, of which 0 would be no limit.
_LEAST_SECONDS, _MOST_SECONDS = 1e-6, 1e6
# The kernel counts a process's time in ticks of up to 10 ms.
_LEAST_IMAGE_SECONDS = 0.05
_RELEASE = re.compile(r"[0-9]{2}\.(0[1-9]|1[0-2])")


@dataclass(frozen=True)
class Settings:
    """What the configs say beside the serving spec.

    Attributes:
        image_batch, text_batch: items per request and per dynamic batch.
        preprocess_threads: each has a process decode small images, on one core.
        decoder_processes: that decode all other images, each within its limits and on one core.
        max_pixels, max_bytes: of an encoded image.
        image_seconds, image_megabytes: what decoding one image may take, of one core and beside the decoder's own.
        exif: whether images are turned as their EXIF orientation says: one of EXIF_MODES.
        threads: cores that a tower uses under `onnxruntime-python`; 0 takes every core the server may use.
        runtime: what runs the towers: one of RUNTIMES.
        preprocess: what decodes images: one of PREPROCESSES.
        release: the oldest release of tritonserver that will serve, YY.MM.
        encoder_instances: copies of a tower on each GPU; `onnxruntime-python` has one, which takes all there is.
        queue_seconds: the timeout of requests that come without one, and the longest that counts. What waited half of
            it for its turn, or would, is answered UNAVAILABLE.
        max_queue_size: requests that may wait for a model; in Triton's own queues where the release can.
        queue_bytes: bytes of the requests that may wait for a model; of those in its own queue.
        queue_delay_us: how long a batch waits to become full, microseconds; not of `onnxruntime-python`, which batches
            by itself.
        graph_batches: under `tensorrt`, batch sizes that get a CUDA graph; None is powers of two and the largest.
        pinned_memory: whether batches pass through pinned host memory on their way to and from the GPU.
        text_cache: whether embeddings of texts are kept in Triton's response cache.
        max_text_bytes: of one text.
        max_split_rows, max_split_bytes: texts, and bytes of all of them, in a request to `split_text`.
        max_scores: images x texts in a request to `similarity`.
    """

    image_batch: int = 32
    text_batch: int = 64
    preprocess_threads: int = 2
    decoder_processes: int = 2
    max_pixels: int = 89_478_485
    max_bytes: int = 1 << 25
    image_seconds: float = 2.0
    image_megabytes: int = 500
    exif: str = "transpose"
    threads: int = 0
    runtime: str = PYTHON
    preprocess: str = CPU
    release: str = EMBEDDED_RELEASE
    encoder_instances: int = 1
    queue_seconds: float = 20.0
    max_queue_size: int = 1024
    queue_bytes: int = 128 << 20
    queue_delay_us: int = 0
    graph_batches: tuple[int, ...] | None = None
    pinned_memory: bool = True
    text_cache: bool = True
    max_text_bytes: int = 1 << 16
    max_split_rows: int = 256
    max_split_bytes: int = 1 << 20
    max_scores: int = 1 << 22

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if not least <= value <= _MOST:
                raise RepositoryError(f"{name} is {value}; it must be at least {least} and at most {_MOST}")
        for name, least_s in (("queue_seconds", _LEAST_SECONDS), ("image_seconds", _LEAST_IMAGE_SECONDS)):
            seconds = getattr(self, name)
            if not least_s <= seconds <= _MOST_SECONDS:
                raise RepositoryError(f"{name} is {seconds:g}; it must be from {least_s:g} to {_MOST_SECONDS:g}")
        for name, allowed in (("runtime", RUNTIMES), ("preprocess", PREPROCESSES), ("exif", EXIF_MODES)):
            if getattr(self, name) not in allowed:
                raise RepositoryError(f"{name} is {getattr(self, name)!r}; allowed: {', '.join(allowed)}")
        if not _RELEASE.fullmatch(self.release):
            raise RepositoryError(
                f"release is {self.release!r}; write the release of tritonserver as YY.MM, like 26.04"
            )
        self._check_runtime()

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
    def triton_queue_size(self) -> int:
        """Requests that may wait in a queue of Triton's; 0: any number."""
        return self.max_queue_size if self.release >= FIRST_WITH_BOUNDED_QUEUES else 0

    @property
    def own_queue(self) -> dict[str, str]:
        """The parameters of a model that has a queue of its own."""
        return {
            "queue_seconds": f"{self.queue_seconds:g}",
            "max_queue_size": str(self.max_queue_size),
            "queue_bytes": str(self.queue_bytes),
        }

    def changed(self, changes: Mapping[str, Any]) -> Settings:
        """With `changes`, by attribute; what another runtime does not have goes back to its default."""
        runtime = changes.get("runtime", self.runtime)
        lost: dict[str, Any] = {}
        if runtime != self.runtime:
            lost |= {"graph_batches": None} if runtime != TENSORRT else {}
            lost |= {"encoder_instances": 1, "queue_delay_us": 0} if runtime == PYTHON else {}
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
