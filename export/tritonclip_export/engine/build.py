"""Builds the engines of both towers, proves them, and only then puts them where they are served from."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tritonclip_export.engine import lint
from tritonclip_export.engine.boundary import BuildRequest, Machine, Toolkit
from tritonclip_export.engine.gate import compare, require_parity
from tritonclip_export.engine.probe_set import ProbeSet, read_probe_set
from tritonclip_export.engine.profiles import Profile, Ranges, profiles
from tritonclip_export.engine.trtexec import trtexec_line
from tritonclip_export.errors import EngineError
from tritonclip_export.local_gpu import ENGINES, records
from tritonclip_export.progress import step
from tritonclip_export.repository.config_check import require_agreement
from tritonclip_export.repository.configs import read_config
from tritonclip_export.repository.configure import publish, settings_of, stage
from tritonclip_export.repository.encoders import ENCODERS, graph_batches
from tritonclip_export.repository.in_place import repository_lock, staged_beside
from tritonclip_export.repository.manifest import read_manifest, verify
from tritonclip_export.repository.signature import Signer
from tritonclip_export.settings import TENSORRT, Settings
from tritonclip_export.spec import ServingSpec


@dataclass(frozen=True)
class EngineRequest:
    """What to build; see `tritonclip engine build --help` for each."""

    repository: Path
    ranges: Ranges = field(default_factory=Ranges)
    workspace_gib: float | None = None
    version_compatible: bool = False
    timing_cache: Path | None = None
    tensorrt_runtime: bool = False
    graph_batches: Sequence[int] | None = None
    probe_images: Path | None = None
    probe_texts: Path | None = None
    signer: Signer | None = None

    def __post_init__(self) -> None:
        if self.workspace_gib is not None and not self.workspace_gib > 0:
            raise EngineError(f"--workspace {self.workspace_gib:g} given; it is GiB, more than 0")


@dataclass(frozen=True)
class Plan:
    """What can be said before there is a GPU."""

    spec: ServingSpec
    manifest: Mapping[str, Any]
    profiles: Mapping[str, Profile]


def graphs(repository: Path) -> list[Path]:
    """The ONNX file of each of ENCODERS."""
    return [_graph(repository, model) for model in ENCODERS]


def _graph(repository: Path, model: str) -> Path:
    return repository / model / "1" / "model.onnx"


def plan(request: EngineRequest) -> Plan:
    """Check the repository, its graphs against TensorRT's documentation, and the ranges.

    Raises:
        RepositoryError: a file is not what was exported, such as an ONNX changed after its gate.
        EngineError: see `lint.require` and `profiles`.
    """
    repository = request.repository
    # Told before hours of building.
    manifest = read_manifest(repository, request.signer)
    # An engine that is cut in half or gone is what is built again.
    verify(repository, without=[one["file"] for one in records(manifest)])
    spec = ServingSpec.from_dict(manifest["spec"])
    made = Plan(spec, manifest, profiles(repository, spec, request.ranges))
    lint.require(graphs(repository))
    for model in ENCODERS:
        config = read_config(repository / model / "config.pbtxt")
        require_agreement(config, _graph(repository, model))
        graph_batches(request.graph_batches, config.max_batch_size, model)
    return made


def build(request: EngineRequest, open_toolkit: Callable[[], Toolkit]) -> dict[str, Any]:
    """Build, compare with ONNX Runtime, and publish; returns the manifest. What stood there stays on any error.

    Args:
        open_toolkit: called once the repository was checked, so that its faults are told on any machine.

    Raises:
        ExportError: one of its kinds.
    """
    request = replace(request, repository=request.repository.resolve())
    repository = request.repository
    made = plan(request)
    probes = read_probe_set(repository, made.spec, images=request.probe_images, texts=request.probe_texts)
    toolkit = open_toolkit()
    print("\n".join(trtexec_lines(request, made, toolkit.machine())), file=sys.stderr)
    with staged_beside(repository, "engines") as staging:
        built = {model: _build_one(request, made, model, probes, toolkit, staging) for model in ENCODERS}
        with repository_lock(repository):
            _publish(request, built, staging)
    return read_manifest(repository)


def _build_one(
    request: EngineRequest, made: Plan, model: str, probes: ProbeSet, toolkit: Toolkit, staging: Path
) -> dict[str, Any]:
    """Write one engine below `staging` and prove it; returns its record."""
    machine = toolkit.machine()
    graph = _graph(request.repository, model)
    wanted = _build_request(request, model, made.profiles[model], machine)
    name = _engine_name(model, machine)
    started = time.monotonic()
    print(f"build {name} …", file=sys.stderr, flush=True)
    try:
        content = toolkit.build(wanted)
    except (RuntimeError, MemoryError) as error:
        raise EngineError(_not_built(wanted, error)) from error
    seconds = time.monotonic() - started
    print(f"built in {seconds:.1f} s", file=sys.stderr, flush=True)
    (staging / name).parent.mkdir(parents=True)
    (staging / name).write_bytes(content)
    with step(f"compare {name} with ONNX Runtime"):
        comparisons = compare(ENCODERS[model], staging / name, graph, probes, made, toolkit)
    require_parity(comparisons, made.spec.precision)
    return {
        "file": name,
        **asdict(machine),
        "onnx": _graph_hashes(made.manifest, model),
        "built": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "build_seconds": round(seconds, 1),
        "profile": asdict(wanted.profile),
        "options": {"workspace_gib": wanted.workspace_gib, "version_compatible": wanted.version_compatible},
        "parity": [asdict(comparison) for comparison in comparisons],
    }


def trtexec_lines(request: EngineRequest, made: Plan, machine: Machine | None) -> list[str]:
    """What trtexec would be asked for the same engines, on `machine`."""
    lines = []
    for model, profile in made.profiles.items():
        wanted = _build_request(request, model, profile, machine)
        lines.append(trtexec_line(wanted, request.repository / _engine_name(model, machine)))
    return lines


def _engine_name(model: str, machine: Machine | None) -> str:
    capability = machine.compute_capability.replace(".", "") if machine else "GPU"
    return f"{model}/1/model.plan.cc{capability}"


def _build_request(request: EngineRequest, model: str, profile: Profile, machine: Machine | None) -> BuildRequest:
    """Timings hold for one GPU and one TensorRT, and so does the name of their file."""
    repository = request.repository
    of = f"cc{machine.compute_capability}-{machine.tensorrt}" if machine else "GPU"
    cache = request.timing_cache or repository.parent / f"{repository.name}.timing-cache-{of}"
    return BuildRequest(_graph(repository, model), profile, request.workspace_gib, request.version_compatible, cache)


def _not_built(wanted: BuildRequest, error: Exception) -> str:
    given = f"{wanted.workspace_gib:g} GiB" if wanted.workspace_gib is not None else "all of the GPU's memory"
    return (
        f"TensorRT built no engine of {wanted.onnx}: {str(error) or 'out of memory'}; the workspace was {given}: where "
        "memory ran out, stop what else uses the GPU, or give --workspace GIB, or a smaller largest batch at export"
    )


def _graph_hashes(manifest: Mapping[str, Any], model: str) -> dict[str, str]:
    prefix = f"{model}/1/model.onnx"
    return {name: digest for name, digest in manifest["files"].items() if name.startswith(prefix)}


def _publish(request: EngineRequest, built: Mapping[str, dict[str, Any]], staging: Path) -> None:
    repository = request.repository
    # Another may have changed it meanwhile: a classifier, or an engine for another GPU.
    manifest = read_manifest(repository, request.signer)
    if any(_graph_hashes(manifest, model) != record["onnx"] for model, record in built.items()):
        raise EngineError(f"{repository} was exported again while its engines were built; build them again")
    engines = {model: _joined(manifest, model, record) for model, record in built.items()}
    kept = {record["file"] for model in engines.values() for record in model}
    stale = {record["file"] for record in records(manifest)} - kept
    files = {name: digest for name, digest in manifest["files"].items() if name not in stale}
    manifest = {**manifest, ENGINES: engines, "files": files}
    settings = _settings(request, manifest)
    written = [record["file"] for record in built.values()]
    if settings.runtime == TENSORRT:
        manifest, configs = stage(repository, manifest, settings, staging)
        written += configs
    publish(repository, manifest, written, staging, request.signer)


def _settings(request: EngineRequest, manifest: Mapping[str, Any]) -> Settings:
    settings = settings_of(request.repository, manifest)
    if request.tensorrt_runtime:
        settings = replace(settings, runtime=TENSORRT)
    if request.graph_batches is not None:
        settings = replace(settings, graph_batches=tuple(request.graph_batches))
    return settings


def _joined(manifest: Mapping[str, Any], model: str, record: dict[str, Any]) -> list[dict[str, Any]]:
    """The engines of other GPUs stay; all of one model come from the same graph."""
    others = [one for one in manifest.get(ENGINES, {}).get(model, []) if one["file"] != record["file"]]
    return sorted([*others, record], key=lambda one: str(one["file"]))
