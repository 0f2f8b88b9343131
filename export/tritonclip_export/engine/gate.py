"""Compares an engine with ONNX Runtime on the file that it was built from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tritonclip_export.engine.boundary import Array, Toolkit
from tritonclip_export.engine.probe_set import ProbeSet
from tritonclip_export.errors import ParityError
from tritonclip_export.parity.comparison import MAXIMUM_ABS, MINIMUM_COSINE, Comparison, OnnxTower
from tritonclip_export.parity.probes import CHUNK

if TYPE_CHECKING:
    from tritonclip_export.engine.build import Plan

Batches = list[Array]


def compare(tower: str, engine: Path, graph: Path, probes: ProbeSet, made: Plan, toolkit: Toolkit) -> list[Comparison]:
    """Embed every probe with `engine` and with ONNX Runtime: at the ends of the profile, and at every bucket.

    Raises:
        EngineError: the engine does not run.
    """
    cases = _image_cases(probes, made) if tower == "image" else _text_cases(probes, made)
    embedded = iter(toolkit.run(engine, [batch for batches in cases.values() for batch in batches]))
    reference = OnnxTower(graph)
    comparisons = []
    for name, batches in cases.items():
        given = np.concatenate([next(embedded) for _ in batches])
        expected = reference(np.concatenate(batches), CHUNK)
        comparisons.append(Comparison.of(f"engine, {name}", tower, expected, given))
    return comparisons


def require_parity(comparisons: Sequence[Comparison], precision: str) -> None:
    """Refuse an engine that answers otherwise than its graph, by the thresholds of the graph's own gate.

    Raises:
        ParityError: names the first batch that differs.
    """
    for one in comparisons:
        least, most = MINIMUM_COSINE[precision][one.tower], MAXIMUM_ABS[precision]
        # Written so that NaN fails too.
        if not (one.cosine_min >= least and one.max_abs <= most):
            raise ParityError(
                f"the engine does not answer as its graph does ({one.tower} tower, {one.stage}: cosine "
                f"{one.cosine_min:.6f}, max abs {one.max_abs:.2e}); at least {least} and at most {most} are required "
                f"of every probe in {precision}; the engines that stood there are still in place"
            )


def _image_cases(probes: ProbeSet, made: Plan) -> dict[str, Batches]:
    sizes = _sizes(made, "image_encoder")
    return {f"batch {size}": _batches(probes.pixels, size) for size in sizes}


def _text_cases(probes: ProbeSet, made: Plan) -> dict[str, Batches]:
    sizes, text = _sizes(made, "text_encoder"), made.spec.text
    return {
        f"batch {size}, length {length}": _batches(_cut(probes.input_ids, length, text.eot_id), size)
        for length in text.buckets
        for size in sizes
    }


def _sizes(made: Plan, model: str) -> list[int]:
    profile = made.profiles[model]
    return sorted({profile.min[0], min(3, profile.max[0]), profile.opt[0], profile.max[0]})


def _cut(input_ids: Array, length: int, eot_id: int) -> Array:
    """The first `length` ids; a text that is longer ends there, as the tokenizer cuts it."""
    cut: Array = input_ids[:, :length].copy()
    cut[~(cut == eot_id).any(axis=1), -1] = eot_id
    return cut


def _batches(inputs: Array, size: int) -> Batches:
    """All of `inputs`, `size` at a time; the first ones fill the last batch up."""
    return [inputs[np.arange(start, start + size) % len(inputs)] for start in range(0, len(inputs), size)]
