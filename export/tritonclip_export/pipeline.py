"""The export from end to end: checkpoint in, served model repository out, or nothing at all."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tritonclip_export import manifest, onnx_export, parity, repository
from tritonclip_export.adapters import Adapters, read_adapters
from tritonclip_export.checkpoint import Checkpoint, load_checkpoint, weights_hash, with_long_context
from tritonclip_export.configs import Limits, apply_spec
from tritonclip_export.frameworks import torch
from tritonclip_export.grafts import Graft
from tritonclip_export.lora import MergeResult, merge_adapters
from tritonclip_export.lora.compose import Composition
from tritonclip_export.probes import Probes, make_probes
from tritonclip_export.progress import step
from tritonclip_export.reference import ReferenceUnavailable, unmerged_reference
from tritonclip_export.spec import ServingSpec
from tritonclip_export.spec_builder import build_spec
from tritonclip_export.towers import served_towers

TOOLS = (
    "tritonclip",
    "torch",
    "open_clip_torch",
    "onnx",
    "onnxscript",
    "onnxruntime",
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
    weights: Path | None = None
    pretrained: str | None = None
    like: str | None = None
    random_weights: int | None = None
    stretch_context: bool = False
    tokenizer: Path | None = None
    name: str | None = None
    limits: Limits = field(default_factory=Limits)
    probe_pictures: Path | None = None
    probe_texts: Path | None = None
    force: bool = False


def export(request: ExportRequest) -> dict[str, Any]:
    """Export a checkpoint; returns the manifest.

    Raises:
        ExportError: one of its kinds; then the output directory is as it was before.
    """
    repository.check_output(request.out, force=request.force)
    # Where OUT is a link, the link stays and what it points to is replaced.
    out = request.out.resolve()
    with step("read the checkpoint"):
        checkpoint = _load(request)
        source_hash = weights_hash(checkpoint.state_dict)
        # What is served is float32, so rounding the merged weights to the checkpoint's float16 would only lose.
        in_float32 = {name: tensor.float() for name, tensor in checkpoint.state_dict.items()}
        checkpoint = replace(checkpoint, state_dict=in_float32)
        adapters = read_adapters(
            request.adapters, alpha=request.lora_alpha, rank=request.lora_rank, file_format=request.adapter_format
        )
    with step(f"merge {len(adapters.merged)} adapters" if adapters.merged else "take the weights as they are"):
        merged = merge_adapters(checkpoint.state_dict, adapters.merged, build=checkpoint.build, how=request.composition)
        spec = _stamp(build_spec(checkpoint, merged.state_dict), merged, adapters.grafts)
    probes = make_probes(
        checkpoint.preprocess_cfg, checkpoint.tokenization, pictures=request.probe_pictures, texts=request.probe_texts
    )
    # Before anything is written: here weights that do not fit their config are found.
    with step("embed the probes in PyTorch"):
        gate = _open_gate(checkpoint, adapters, merged, probes)
    with repository.staged(out) as staging:
        report = _convert(checkpoint, merged, adapters.grafts, spec, gate, staging)
        _complete(checkpoint, spec, request.limits, staging)
        manifest.write_manifest(staging, _manifest(checkpoint, source_hash, adapters, merged, spec, report))
    return manifest.read_manifest(out)


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
    return with_long_context(checkpoint) if request.stretch_context else checkpoint


def _stamp(spec: ServingSpec, merged: MergeResult, grafts: Sequence[Graft]) -> ServingSpec:
    # What people call the model changes no embedding.
    nameless = replace(spec, name="", architecture="")
    content = "\n".join([weights_hash(merged.state_dict), nameless.to_json(), *(graft.digest() for graft in grafts)])
    return spec.with_fingerprint(hashlib.sha256(content.encode()).hexdigest())


def _convert(
    checkpoint: Checkpoint,
    merged: MergeResult,
    grafts: Sequence[Graft],
    spec: ServingSpec,
    gate: Gate,
    staging: Path,
) -> parity.ParityReport:
    """Write both ONNX files into `staging` and pass them through the gate.

    One copy of the weights at a time beside the checkpoint's: the towers, then ONNX Runtime's.
    """
    model = checkpoint.build(merged.state_dict)
    for graft in grafts:
        graft.attach(model)
    towers = served_towers(model, checkpoint.model_cfg, spec.image.mean, spec.image.std)
    del model
    files = (staging / "image_encoder" / "1" / "model.onnx", staging / "text_encoder" / "1" / "model.onnx")
    with step("convert the image tower to ONNX"):
        onnx_export.export_image_tower(towers[0], spec, files[0])
    with step("convert the text tower to ONNX"):
        onnx_export.export_text_tower(towers[1], spec, files[1])
    with step("compare with PyTorch"):
        report = parity.ParityReport(
            gate.reference, parity.MINIMUM_COSINE[spec.precision], parity.MAXIMUM_ABS[spec.precision]
        )
        parity.compare_merged(gate.expected, gate.probes, towers, report)
        del towers
        parity.compare_onnx(gate.expected, gate.probes, files, spec.text, report)
    report.require()
    return report


@dataclass(frozen=True)
class Gate:
    """Inputs, their image and text embeddings in float32 PyTorch, and what computed these."""

    probes: Probes
    expected: tuple[Any, Any]
    reference: str


def _open_gate(checkpoint: Checkpoint, adapters: Adapters, merged: MergeResult, probes: Probes) -> Gate:
    method, why = merged.report.composition.method, ""
    try:
        if adapters.merged and method != "sum":
            raise ReferenceUnavailable(f"PEFT has no unmerged forward for {method}. The merge itself is possible.")
        reference = unmerged_reference(checkpoint.model_cfg, checkpoint.state_dict, adapters.merged, adapters.grafts)
        description = reference.description
    except ReferenceUnavailable as error:
        # Only the words: the error would keep the first model alive.
        why = str(error)
    if why:
        reference = unmerged_reference(checkpoint.model_cfg, merged.state_dict, [], adapters.grafts)
        description = f"{reference.description} with the merged weights, because: {why}"
    with torch.no_grad():
        images = reference.encode_image(probes.pixel_values).numpy()
        texts = reference.encode_text(probes.input_ids).numpy()
    return Gate(probes, (images, texts), description)


def _complete(checkpoint: Checkpoint, spec: ServingSpec, limits: Limits, staging: Path) -> None:
    checkpoint.tokenization.write(staging / "tokenizer" / "1" / "tokenizer.json")
    apply_spec(staging, spec, limits)
    repository.write_warmups(staging, checkpoint.preprocess_cfg, checkpoint.tokenization, spec.text.buckets[0])


def _manifest(
    checkpoint: Checkpoint,
    source_hash: str,
    adapters: Adapters,
    merged: MergeResult,
    spec: ServingSpec,
    report: parity.ParityReport,
) -> dict[str, Any]:
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "spec": asdict(spec),
        "source": {**checkpoint.source, "weights_sha256": source_hash},
        "adapters": [
            {
                "path": str(adapter.path),
                "weight": weight,
                "files": {file.name: manifest.file_hash(file) for file in adapter.files},
            }
            for adapter, weight in adapters.merged
        ],
        "grafts": [
            {
                "path": str(graft.path),
                "method": graft.method,
                "files": {str(file): manifest.file_hash(file) for file in graft.files},
            }
            for graft in adapters.grafts
        ],
        "merge": {
            **merged.report.to_dict(),
            "notes": [*merged.report.warnings, *(note for graft in adapters.grafts for note in graft.notes)],
        },
        "parity": report.to_dict(),
        "tools": {tool: version(tool) for tool in TOOLS},
    }
