"""What is measured: the towers of a model repository, what they are fed, and what they should answer."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tritonclip_bench.gpu import graph
from tritonclip_export.engine.boundary import Array
from tritonclip_export.engine.probe_set import read_probe_set
from tritonclip_export.errors import ExportError
from tritonclip_export.parity.comparison import OnnxTower, that_fit
from tritonclip_export.pipeline import ExportRequest, Prepared, export, served_modules
from tritonclip_export.registry.catalog import all_models
from tritonclip_export.repository.manifest import verify
from tritonclip_export.spec import ServingSpec

RANDOM_SEED = 0


@dataclass(frozen=True)
class Case:
    """One tower, and for texts one of the lengths that the server pads them to.

    Attributes:
        tower: "image" or "text".
        inputs: of the parity gate's probes those that fit: uint8 [N, ...] or int32 [N, length].
        expected: their embeddings in float32 [N, D], by what `reference` names.
        flops: operations of one item, counted in the graph; a multiply-add is two.
        weight_bytes: read once a batch.
        item_bytes: what goes in and comes out of one item.
    """

    tower: str
    length: int | None
    onnx: Path
    inputs: Array
    expected: Array
    flops: int
    weight_bytes: int
    item_bytes: int

    def batch(self, size: int) -> tuple[Array, Array]:
        """So many rows of `inputs`, again from the first where they are fewer, and of `expected`."""
        rows = np.arange(size) % len(self.inputs)
        return self.inputs[rows], self.expected[rows]

    @property
    def name(self) -> str:
        """For tables."""
        return self.tower if self.length is None else f"{self.tower}, {self.length} ids"


@dataclass(frozen=True)
class Subject:
    """Everything that is measured.

    Attributes:
        title: for the name of a file.
        repository: what `tritonclip export` wrote.
        modules: the same towers in PyTorch, or None where only the repository is there.
        reference: what computed the embeddings that every runtime is compared with.
        registry: image and text operations of the registry's model of that name, if it has one.
    """

    title: str
    repository: Path
    spec: ServingSpec
    manifest: dict[str, Any]
    cases: list[Case]
    modules: Prepared | None
    reference: str
    registry: dict[str, int] | None


@contextmanager
def open_subject(repository: Path | None, architecture: str | None, precision: str) -> Iterator[Subject]:
    """A repository that is there, or one with random weights that is gone afterwards.

    Raises:
        ExportError: the repository is not what was exported, or no architecture has that name.
    """
    if repository is not None:
        yield _of_repository(repository)
        return
    assert architecture is not None
    with tempfile.TemporaryDirectory(prefix="tritonclip-bench-") as folder:
        request = ExportRequest(
            architecture, Path(folder) / "repository", random_weights=RANDOM_SEED, precision=precision
        )
        # A directory brings its own weights.
        if Path(architecture).is_dir():
            request = ExportRequest(architecture, request.out, precision=precision)
        export(request)
        yield _of_checkpoint(request)


def _of_repository(repository: Path) -> Subject:
    manifest = verify(repository)
    spec = ServingSpec.from_dict(manifest["spec"])
    probes = read_probe_set(repository, spec)
    cases = _cases(repository, spec, (probes.pixels, probes.input_ids), None)
    name = spec.name or repository.name
    return Subject(name, repository, spec, manifest, cases, None, _ONNX_REFERENCE, _registry(spec.architecture))


_ONNX_REFERENCE = "ONNX Runtime on the CPU, on the same graph"


def _of_checkpoint(request: ExportRequest) -> Subject:
    manifest = verify(request.out)
    spec = ServingSpec.from_dict(manifest["spec"])
    modules = served_modules(request)
    probes, expected = modules.gate.probes, modules.gate.expected
    cases = _cases(request.out, spec, (probes.pixels.numpy(), probes.input_ids.numpy()), expected)
    registry = _registry(request.source)
    name = Path(request.source).name
    return Subject(name, request.out, spec, manifest, cases, modules, modules.gate.reference, registry)


def _registry(architecture: str) -> dict[str, int] | None:
    for model in all_models():
        if model.config == architecture:
            return {"image": model.image_flops, "text": model.text_flops}
    return None


def _cases(
    repository: Path, spec: ServingSpec, inputs: tuple[Array, Array], expected: tuple[Array, Array] | None
) -> list[Case]:
    """Both towers, the text tower at every length; without `expected` ONNX Runtime says what is right."""
    image, text = (repository / f"{tower}_encoder" / "1" / "model.onnx" for tower in ("image", "text"))
    pixels, input_ids = inputs
    whole = expected or (OnnxTower(image)(pixels), OnnxTower(text)(input_ids))
    cases = [_case("image", None, image, pixels, whole[0])]
    for length in spec.text.buckets:
        ids, rows = that_fit(input_ids, length, spec.text)
        if not len(ids):
            raise ExportError(f"no probe text fits into {length} ids; export with larger buckets")
        cases.append(_case("text", length, text, ids, whole[1][rows]))
    return cases


def _case(tower: str, length: int | None, onnx: Path, inputs: Array, expected: Array) -> Case:
    flops = graph.flops(graph.profile(onnx, inputs[:1]))
    item_bytes = inputs[0].nbytes + expected[0].nbytes
    return Case(tower, length, onnx, inputs, expected, flops, graph.weight_bytes(onnx), item_bytes)
