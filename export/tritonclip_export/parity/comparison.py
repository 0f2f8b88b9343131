"""The gate: an exported tower must reproduce the checkpoint, stage by stage, or nothing is published.

The reference is float32 PyTorch with the adapter applied unmerged, by the library that owns it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from tritonclip_export.errors import ParityError
from tritonclip_export.frameworks import torch
from tritonclip_export.parity.probes import CHUNK, Probes
from tritonclip_export.spec import TextSpec
from tritonclip_export.towers.precision.calibrate import Activities, recording
from tritonclip_export.towers.precision.float16 import TypedTower, to_float16
from tritonclip_export.towers.precision.report import LayerReport, layer_report

# The least cosine that any single probe may have against float32 PyTorch. Of int8 ten times the loss of ViT-B-32 with
# random weights and more: trained towers have outliers. docs/precision.md has the figures.
MINIMUM_COSINE = {
    "float32": {"image": 0.99999, "text": 0.99999},
    "float16": {"image": 0.9995, "text": 0.9995},
    "int8": {"image": 0.995, "text": 0.99},
}
# The most that any single value of an embedding may differ; the narrower types are judged by the cosine alone, as
# rounding moves every value a little.
MAXIMUM_ABS = {"float32": 1e-4, "float16": math.inf, "int8": math.inf}
MERGED = "merge"
BATCH_SIZES = (1, 3, 8)
TOWERS = ("image", "text")
TOP = 5
WORST = 3

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Comparison:
    """One tower after one stage against the reference, over all probes."""

    stage: str
    tower: str
    cosine_min: float
    cosine_mean: float
    max_abs: float
    cosine_p1: float

    @classmethod
    def of(cls, stage: str, tower: str, reference: Array, given: Array) -> Comparison:
        """Compare embeddings [N, D], both L2-normalised."""
        cosines = _cosines(reference, given)
        finite = np.isfinite(given).all()
        return cls(
            stage,
            tower,
            float(cosines.min()) if finite else float("nan"),
            float(cosines.mean()) if finite else float("nan"),
            float(np.abs(reference - given).max()) if finite else float("nan"),
            float(np.percentile(cosines, 1)) if finite else float("nan"),
        )


@dataclass
class ParityReport:
    """Every comparison, and how often the served zero-shot answers are the reference's.

    Attributes:
        reference: what the export is compared with.
        precision: the type of the served graphs' products, a key of MINIMUM_COSINE; what stage "merge" compares is
            float32 always.
        top1_agreement, top5_agreement: over the probes, how much of an image's best text, and of its best five, is
            the same, in the worst stage after the merge.
        worst_inputs: by tower, the probes with the least cosines, in that tower's worst stage after the merge.
        layers: by tower, what a narrower precision did inside; see `precision.report`.
        caveat: why the reference has the merged weights, so that the merge is compared with nothing; None: it has not.
    """

    reference: str
    precision: str = "float32"
    comparisons: list[Comparison] = field(default_factory=list)
    top1_agreement: float = 1.0
    top5_agreement: float = 1.0
    images: int = 0
    texts: int = 0
    worst_inputs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    layers: dict[str, LayerReport] = field(default_factory=dict)
    caveat: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return {**asdict(self), "minimum_cosine": MINIMUM_COSINE[self.precision]}

    def require(self) -> None:
        """Raise ParityError that names the first stage of each tower that lost accuracy, and the layer that did."""
        failed: dict[str, Comparison] = {}
        for comparison in self.comparisons:
            precision = "float32" if comparison.stage == MERGED else self.precision
            enough = comparison.cosine_min >= MINIMUM_COSINE[precision][comparison.tower]
            # Written so that NaN fails too.
            if not (enough and comparison.max_abs <= MAXIMUM_ABS[precision]):
                failed.setdefault(comparison.tower, comparison)
        if failed:
            raise ParityError(
                f"the export does not reproduce the checkpoint ({'; '.join(map(self._describe, failed.values()))}); "
                "nothing was published"
            )

    def judge(self, probes: Probes, reference: tuple[Array, Array], given: tuple[Array, Array]) -> None:
        """Note agreement and worst inputs of one stage; the worse stage stays."""
        ranks = [np.argsort(-(image @ text.T), axis=1, kind="stable")[:, :TOP] for image, text in (reference, given)]
        self.top1_agreement = min(self.top1_agreement, float((ranks[0][:, 0] == ranks[1][:, 0]).mean()))
        shared = (ranks[0][:, :, None] == ranks[1][:, None]).any(axis=2)
        self.top5_agreement = min(self.top5_agreement, float(shared.mean()))
        for tower, names, expected, embeddings in zip(TOWERS, probes.names, reference, given, strict=True):
            cosines = np.nan_to_num(_cosines(expected, embeddings))
            order = np.argsort(cosines, kind="stable")[:WORST]
            worst = [{"input": names[i][:80], "cosine": float(cosines[i])} for i in order]
            before = self.worst_inputs.setdefault(tower, worst)
            self.worst_inputs[tower] = min(before, worst, key=lambda inputs: inputs[0]["cosine"])

    def _describe(self, failed: Comparison) -> str:
        precision = "float32" if failed.stage == MERGED else self.precision
        least, most = MINIMUM_COSINE[precision][failed.tower], MAXIMUM_ABS[precision]
        required = f"at least {least}" + (f" and at most {most}" if most < math.inf else "")
        lost = self.layers[failed.tower].lossy if failed.tower in self.layers and failed.stage != MERGED else []
        layer = f", lost most in the layer {lost[0].describe()}" if lost else ""
        return (
            f"{failed.tower} tower at stage '{failed.stage}': cosine {failed.cosine_min:.6f}, max abs "
            f"{failed.max_abs:.2e}, required of every probe in {precision}: {required}{layer}"
        )


def compare_towers(
    stage: str,
    reference: tuple[Array, Array],
    probes: Probes,
    towers: Sequence[torch.nn.Module],
    report: ParityReport,
    *,
    record: bool = False,
) -> list[Activities]:
    """Add to `report` the towers in PyTorch.

    Args:
        reference: image and text embeddings of all probes, float32 [N, D] and [M, D].
        towers: the image tower and the text tower.
        record: whether to watch every module; it takes several times as long.

    Returns:
        what the modules of each tower saw; nothing without `record`.
    """
    seen, given = [], []
    for tower, module, inputs, expected in zip(
        TOWERS, towers, (probes.pixels, probes.input_ids), reference, strict=True
    ):
        watch: AbstractContextManager[Activities] = recording(_inner(module)) if record else nullcontext({})
        with torch.no_grad(), watch as activities:
            embeddings = torch.cat([module(chunk) for chunk in inputs.split(CHUNK)]).numpy()
        report.comparisons.append(Comparison.of(stage, tower, expected, embeddings))
        seen.append(activities)
        given.append(embeddings)
    if stage != MERGED:
        report.judge(probes, reference, (given[0], given[1]))
    report.images, report.texts = len(reference[0]), len(reference[1])
    return seen


def _inner(module: torch.nn.Module) -> torch.nn.Module:
    return module.tower if isinstance(module, TypedTower) else module


def narrow(
    reference: tuple[Array, Array],
    probes: Probes,
    towers: Sequence[torch.nn.Module],
    wide: Sequence[Activities],
    report: ParityReport,
) -> list[TypedTower]:
    """Turn the towers into float16 in place, and add them to `report`, rounded as a GPU rounds them.

    ONNX Runtime cannot show this on a CPU: there it runs float16 as float32.

    Args:
        wide: what their modules saw in float32.
    """
    typed, islands = to_float16(towers, wide)
    rounded = compare_towers("float16", reference, probes, typed, report, record=True)
    for tower, before, after, names in zip(TOWERS, wide, rounded, islands, strict=True):
        report.layers[tower] = layer_report(before, after, names)
    return typed


def compare_onnx(
    reference: tuple[Array, Array], probes: Probes, files: tuple[Path, Path], text: TextSpec, report: ParityReport
) -> None:
    """Add to `report` the ONNX files at several batch sizes and lengths, one tower in memory at a time.

    Args:
        reference: as for `compare_towers`.
        text: its buckets are the lengths the server uses; each is tried with the texts that fit.
    """
    images = _compare_images(reference[0], probes.pixels.numpy(), files[0], report)
    texts = _compare_texts(reference[1], probes.input_ids.numpy(), files[1], text, report)
    report.judge(probes, reference, (images, texts))


def _compare_images(expected: Array, pixels: Array, file: Path, report: ParityReport) -> Array:
    tower = OnnxTower(file)
    embeddings = tower(pixels)
    report.comparisons.append(Comparison.of("onnx", "image", expected, embeddings))
    for size in BATCH_SIZES:
        report.comparisons.append(Comparison.of(f"onnx, batch {size}", "image", expected, tower(pixels, size)))
    return embeddings


def _compare_texts(expected: Array, input_ids: Array, file: Path, text: TextSpec, report: ParityReport) -> Array:
    tower = OnnxTower(file)
    embeddings = tower(input_ids)
    report.comparisons.append(Comparison.of("onnx", "text", expected, embeddings))
    for length in text.buckets:
        ids, rows = that_fit(input_ids, length, text)
        report.comparisons.append(Comparison.of(f"onnx, length {length}", "text", expected[rows], tower(ids, 3)))
    return embeddings


def _cosines(reference: Array, given: Array) -> Array:
    cosines: Array = (reference.astype(np.float64) * given.astype(np.float64)).sum(axis=-1)
    return cosines


class OnnxTower:
    """An exported tower in ONNX Runtime on the CPU."""

    def __init__(self, path: Path) -> None:
        self._session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def __call__(self, batch: Array, size: int = CHUNK) -> Array:
        """Embed `batch`, `size` rows at a time; float32 [N, D]."""
        parts = [batch[start : start + size] for start in range(0, len(batch), size)]
        return np.concatenate([self._session.run(None, {self._input: part})[0] for part in parts])


def that_fit(input_ids: Array, length: int, text: TextSpec) -> tuple[Array, Array]:
    """The rows whose end of text lies within `length`, cut to it, and their indices."""
    if length == text.context_length:
        return input_ids, np.arange(len(input_ids))
    ends = input_ids if text.pooling == "argmax" else input_ids == text.eot_id
    rows = np.flatnonzero(ends.argmax(axis=1) < length)
    return input_ids[rows, :length], rows
