"""The gate: an exported tower must reproduce the checkpoint, stage by stage, or nothing is published.

The reference is float32 PyTorch with the adapter applied unmerged, by the library that owns it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from tritonclip_export.errors import ParityError
from tritonclip_export.frameworks import torch
from tritonclip_export.probes import CHUNK, Probes
from tritonclip_export.spec import TextSpec
from tritonclip_export.towers import FullTextTower, ImageTower, TextTower

# The least cosine that any single probe may have against float32 PyTorch.
MINIMUM_COSINE = {"float32": 0.99999}
# The most that any single value of an embedding may differ.
MAXIMUM_ABS = {"float32": 1e-4}
BATCH_SIZES = (1, 3, 8)
TOWERS = ("image", "text")

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Comparison:
    """One tower after one stage against the reference, over all probes."""

    stage: str
    tower: str
    cosine_min: float
    cosine_mean: float
    max_abs: float

    @classmethod
    def of(cls, stage: str, tower: str, reference: Array, given: Array) -> Comparison:
        """Compare embeddings [N, D], both L2-normalised."""
        cosines = (reference.astype(np.float64) * given.astype(np.float64)).sum(axis=-1)
        finite = np.isfinite(given).all()
        return cls(
            stage,
            tower,
            float(cosines.min()) if finite else float("nan"),
            float(cosines.mean()) if finite else float("nan"),
            float(np.abs(reference - given).max()) if finite else float("nan"),
        )


@dataclass
class ParityReport:
    """Every comparison, and how often the served zero-shot answer is the reference's."""

    reference: str
    minimum_cosine: float
    maximum_abs: float
    comparisons: list[Comparison] = field(default_factory=list)
    top1_agreement: float = 0.0
    pictures: int = 0
    texts: int = 0

    def to_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)

    def require(self) -> None:
        """Raise ParityError that names the first stage of each tower that lost accuracy."""
        failed: dict[str, Comparison] = {}
        for comparison in self.comparisons:
            # Written so that NaN fails too.
            if not (comparison.cosine_min >= self.minimum_cosine and comparison.max_abs <= self.maximum_abs):
                failed.setdefault(comparison.tower, comparison)
        if failed:
            lost = "; ".join(
                f"{c.tower} tower at stage '{c.stage}': cosine {c.cosine_min:.6f}, max abs {c.max_abs:.2e}"
                for c in failed.values()
            )
            raise ParityError(
                f"the export does not reproduce the checkpoint ({lost}); at least {self.minimum_cosine} and at "
                f"most {self.maximum_abs} are required of every probe; nothing was published"
            )


def compare_merged(
    reference: tuple[Array, Array],
    probes: Probes,
    towers: tuple[ImageTower, TextTower | FullTextTower],
    report: ParityReport,
) -> None:
    """Add to `report` the merged towers in PyTorch.

    Args:
        reference: image and text embeddings of all probes, float32 [N, D] and [M, D].
    """
    for tower, module, inputs, expected in zip(
        TOWERS, towers, (probes.pixels, probes.input_ids), reference, strict=True
    ):
        with torch.no_grad():
            merged = torch.cat([module(chunk) for chunk in inputs.split(CHUNK)]).numpy()
        report.comparisons.append(Comparison.of("merge", tower, expected, merged))
    report.pictures, report.texts = len(reference[0]), len(reference[1])


def compare_onnx(
    reference: tuple[Array, Array], probes: Probes, files: tuple[Path, Path], text: TextSpec, report: ParityReport
) -> None:
    """Add to `report` the ONNX files at several batch sizes and lengths, one tower in memory at a time.

    Args:
        reference: as for `compare_merged`.
        text: its buckets are the lengths the server uses; each is tried with the texts that fit.
    """
    images = _compare_images(reference[0], probes.pixels.numpy(), files[0], report)
    texts = _compare_texts(reference[1], probes.input_ids.numpy(), files[1], text, report)
    answers = [(image @ caption.T).argmax(axis=1) for image, caption in (reference, (images, texts))]
    report.top1_agreement = float((answers[0] == answers[1]).mean())


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
        ids, rows = _that_fit(input_ids, length, text)
        report.comparisons.append(Comparison.of(f"onnx, length {length}", "text", expected[rows], tower(ids, 3)))
    return embeddings


class OnnxTower:
    """An exported tower in ONNX Runtime on the CPU."""

    def __init__(self, path: Path) -> None:
        self._session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def __call__(self, batch: Array, size: int = CHUNK) -> Array:
        """Embed `batch`, `size` rows at a time; float32 [N, D]."""
        parts = [batch[start : start + size] for start in range(0, len(batch), size)]
        return np.concatenate([self._session.run(None, {self._input: part})[0] for part in parts])


def _that_fit(input_ids: Array, length: int, text: TextSpec) -> tuple[Array, Array]:
    """The rows whose end of text lies within `length`, cut to it, and their indices."""
    if length == text.context_length:
        return input_ids, np.arange(len(input_ids))
    ends = input_ids if text.pooling == "argmax" else input_ids == text.eot_id
    rows = np.flatnonzero(ends.argmax(axis=1) < length)
    return input_ids[rows, :length], rows
