"""The export from end to end: checkpoint in, served model repository out, or nothing at all."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tritonclip_export.adapters.graph import GraphAdapter
from tritonclip_export.adapters.lora import MergeResult, plan_merge
from tritonclip_export.adapters.lora.compose import Composition
from tritonclip_export.adapters.read import Adapters, read_adapters
from tritonclip_export.checkpoints.checkpoint import Checkpoint
from tritonclip_export.checkpoints.load import load_checkpoint, with_long_context
from tritonclip_export.checkpoints.model import weights_hash
from tritonclip_export.errors import EngineError
from tritonclip_export.parity import comparison as parity
from tritonclip_export.parity.gate import Gate, merged_gate, unmerged_gate
from tritonclip_export.parity.probes import make_probes
from tritonclip_export.progress import step
from tritonclip_export.repository import dali, manifest
from tritonclip_export.repository import write as repository
from tritonclip_export.repository.configs import read_configs, served_configs, write_configs
from tritonclip_export.repository.configure import SETTINGS
from tritonclip_export.repository.in_place import write_files
from tritonclip_export.repository.signature import Signer
from tritonclip_export.settings import DALI, PYTHON, TENSORRT, Settings
from tritonclip_export.spec import ServingSpec
from tritonclip_export.spec_builder import build_spec
from tritonclip_export.towers import onnx_export
from tritonclip_export.towers.precision import int8
from tritonclip_export.towers.precision.batch_norm import fold_batch_norms
from tritonclip_export.towers.towers import served_towers

TOOLS = (
    "tritonclip",
    "torch",
    "open_clip_torch",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "peft",
    "transformers",
)


@dataclass(frozen=True)
class ExportRequest:
    """What to export and where to; see `tritonclip export --help` for each."""

    source: str
    out: Path
    adapters: Sequence[tuple[Path, float]] = ()
    composition: Composition = field(default_factory=Composition)
    lora_alpha: float | None = None
    lora_rank: int | None = None
    adapter_format: str | None = None
    allow_partial_adapter: bool = False
    weights: Path | None = None
    pretrained: str | None = None
    like: str | None = None
    random_weights: int | None = None
    stretch_context: bool = False
    tokenizer: Path | None = None
    name: str | None = None
    precision: str = "float32"
    settings: Settings = field(default_factory=Settings)
    probe_images: Path | None = None
    probe_texts: Path | None = None
    force: bool = False
    signer: Signer | None = None


@dataclass
class Prepared:
    """A checkpoint, merged and ready to be converted.

    Attributes:
        checkpoint: without its weights.
        towers: image and text, until they are written.
        account: what went in and how it was merged, for the manifest.
    """

    checkpoint: Checkpoint
    spec: ServingSpec
    gate: Gate
    towers: list[Any]
    account: dict[str, Any]


def export(request: ExportRequest) -> dict[str, Any]:
    """Export a checkpoint; returns the manifest.

    Raises:
        ExportError: one of its kinds; then the output directory is as it was before.
    """
    if request.settings.runtime == TENSORRT:
        raise EngineError("engines are built from an exported repository: export, then `tritonclip engine build`")
    repository.check_output(request.out, force=request.force)
    # Where OUT is a link, the link stays and what it points to is replaced.
    out = request.out.resolve()
    # Before anything is written: here weights that do not fit their config are found.
    prepared = _prepare(request)
    with repository.staged(out) as staging:
        report = _convert(prepared, staging)
        _complete(prepared.checkpoint, prepared.spec, request.settings, staging)
        content = {**_manifest(prepared, report), SETTINGS: request.settings.to_dict()}
        manifest.write_manifest(staging, content, request.signer)
    return manifest.read_manifest(out)


def served_modules(request: ExportRequest) -> Prepared:
    """What `export` would convert, with its towers in PyTorch, through the gate's stages there.

    Raises:
        ExportError: one of its kinds.
    """
    prepared = _prepare(request)
    _prove(prepared)
    return prepared


def _prepare(request: ExportRequest) -> Prepared:
    """Read, merge and build. Weights are let go as soon as the next ones are made of them."""
    with step("read the checkpoint"):
        checkpoint = _load(request)
        source_hash = weights_hash(checkpoint.state_dict)
        # What is served is float32, so rounding the merged weights to the checkpoint's float16 would only lose.
        in_float32 = {name: tensor.float() for name, tensor in checkpoint.state_dict.items()}
        checkpoint = replace(checkpoint, state_dict=in_float32)
        adapters = read_adapters(
            request.adapters,
            alpha=request.lora_alpha,
            rank=request.lora_rank,
            file_format=request.adapter_format,
            may_be_partial=request.allow_partial_adapter,
        )
        merge = plan_merge(checkpoint.state_dict, adapters.merged, build=checkpoint.build, how=request.composition)
    probes = make_probes(
        checkpoint.preprocess_cfg, checkpoint.tokenization, images=request.probe_images, texts=request.probe_texts
    )
    with step("embed the probes in PyTorch"):
        gate = unmerged_gate(checkpoint, adapters, probes, request.composition)
    with step(f"merge {len(adapters.merged)} adapters" if adapters.merged else "take the weights as they are"):
        merged = merge()
        account = _account(checkpoint, source_hash, adapters, merged)
        checkpoint = replace(checkpoint, state_dict={})
        del in_float32, merge
        adapters.merged.clear()
        spec = replace(
            build_spec(checkpoint, merged.state_dict), precision=request.precision, runtime=request.settings.runtime
        )
        spec = _stamp(spec, merged, adapters.graph_adapters)
    if isinstance(gate, str):
        with step("embed the probes with the merged weights"):
            gate = merged_gate(checkpoint, merged, adapters.graph_adapters, probes, gate)
    model = checkpoint.build(merged.state_dict)
    for graph_adapter in adapters.graph_adapters:
        graph_adapter.attach(model)
    towers = served_towers(model, checkpoint.model_cfg, spec.image.mean, spec.image.std)
    return Prepared(checkpoint, spec, gate, list(towers), account)


def _load(request: ExportRequest) -> Checkpoint:
    checkpoint = load_checkpoint(
        request.source,
        weights=request.weights,
        pretrained=request.pretrained,
        like=request.like,
        random_weights=request.random_weights,
        tokenizer=request.tokenizer,
        name=request.name,
    )
    if request.stretch_context:
        checkpoint = with_long_context(checkpoint)
    # Before anything runs: a tokenizer of another vocabulary makes ids that the tower does not have.
    spec = build_spec(checkpoint, checkpoint.state_dict)
    dali.require_dali(spec.image, request.settings)
    return checkpoint


def _stamp(spec: ServingSpec, merged: MergeResult, graph_adapters: Sequence[GraphAdapter]) -> ServingSpec:
    # What people call the model, and what runs it, changes no embedding.
    nameless = replace(spec, name="", architecture="", runtime=PYTHON)
    content = "\n".join(
        [
            weights_hash(merged.state_dict),
            nameless.to_json(),
            *(graph_adapter.digest() for graph_adapter in graph_adapters),
        ]
    )
    return spec.with_fingerprint(hashlib.sha256(content.encode()).hexdigest())


def _convert(prepared: Prepared, staging: Path) -> parity.ParityReport:
    """Write both ONNX files into `staging` and pass them through the gate.

    One copy of the weights at a time: the towers', then ONNX Runtime's.
    """
    gate, spec, towers = prepared.gate, prepared.spec, prepared.towers
    files = (staging / "image_encoder" / "1" / "model.onnx", staging / "text_encoder" / "1" / "model.onnx")
    report = _prove(prepared)
    with step("convert the image tower to ONNX"):
        onnx_export.export_image_tower(towers[0], spec, files[0])
    with step("convert the text tower to ONNX"):
        onnx_export.export_text_tower(towers[1], spec, files[1])
    towers.clear()
    # The exporter leaves cycles that hold the weights.
    gc.collect()
    if spec.precision == "int8":
        with step("quantize to int8"):
            for file in files:
                int8.quantize(file)
    with step("compare ONNX Runtime with PyTorch"):
        parity.compare_onnx(gate.expected, gate.probes, files, spec.text, report)
    report.require()
    return report


def _prove(prepared: Prepared) -> parity.ParityReport:
    """Pass the towers through the gate in PyTorch; afterwards they are of the precision that is served."""
    gate, spec, towers = prepared.gate, prepared.spec, prepared.towers
    report = parity.ParityReport(gate.reference, spec.precision, caveat=gate.caveat)
    is_float16 = spec.precision == "float16"
    with step("compare the merged towers with PyTorch"):
        if is_float16:
            fold_batch_norms(towers[0], gate.probes.pixels[:1])
        seen = parity.compare_towers(parity.MERGED, gate.expected, gate.probes, towers, report, record=is_float16)
    if is_float16:
        with step("round to float16 what allows it"):
            towers[:] = parity.narrow(gate.expected, gate.probes, towers, seen, report)
    report.require()
    return report


def _complete(checkpoint: Checkpoint, spec: ServingSpec, settings: Settings, staging: Path) -> None:
    checkpoint.tokenization.write(staging / "tokenizer" / "1" / "tokenizer.json")
    write_configs(staging, served_configs(read_configs(staging), spec, settings, engines={}))
    if settings.preprocess == DALI:
        write_files(staging, dali.dali_files(spec.image, settings))
    repository.write_warmups(staging, checkpoint.preprocess_cfg, checkpoint.tokenization, spec.text.buckets[0])


def _account(checkpoint: Checkpoint, source_hash: str, adapters: Adapters, merged: MergeResult) -> dict[str, Any]:
    return {
        "source": {**checkpoint.source, "weights_sha256": source_hash},
        "adapters": [
            {
                "path": str(adapter.path),
                "weight": weight,
                "files": {file.name: manifest.file_hash(file) for file in adapter.files},
            }
            for adapter, weight in adapters.merged
        ],
        "graph_adapters": [
            {
                "path": str(graph_adapter.path),
                "method": graph_adapter.method,
                "files": {str(file): manifest.file_hash(file) for file in graph_adapter.files},
            }
            for graph_adapter in adapters.graph_adapters
        ],
        "merge": {
            **merged.report.to_dict(),
            "notes": [
                *merged.report.warnings,
                *(note for graph_adapter in adapters.graph_adapters for note in graph_adapter.notes),
            ],
        },
    }


def _manifest(prepared: Prepared, report: parity.ParityReport) -> dict[str, Any]:
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "spec": asdict(prepared.spec),
        **prepared.account,
        "parity": report.to_dict(),
        "tools": installed_tools(),
    }


def installed_tools() -> dict[str, str]:
    """Those of TOOLS that are installed, and their versions: ONNX Runtime is one of two packages."""
    found = {}
    for tool in TOOLS:
        with suppress(PackageNotFoundError):
            found[tool] = version(tool)
    return found
