"""The exports of one model that a sweep is given: the one that is tuned, and those that it is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tritonclip_bench.errors import BenchError
from tritonclip_export.repository.configure import settings_of
from tritonclip_export.repository.manifest import verify
from tritonclip_export.settings import Settings
from tritonclip_export.spec import ServingSpec


@dataclass(frozen=True)
class Export:
    """One export of the model.

    Attributes:
        name: among those of a sweep; empty for the user's own, else by its precision.
    """

    name: str
    repository: Path
    spec: ServingSpec
    settings: Settings


def read_exports(repository: Path, others: Sequence[Path]) -> list[Export]:
    """The user's own export, then the others; all are compared with their manifests first.

    Raises:
        RepositoryError: a folder is not what was exported.
        BenchError: another one is of another model, or of the same precision.
    """
    own_manifest = verify(repository)
    own = _export("", repository, own_manifest)
    found = [own]
    for other in others:
        manifest = verify(other)
        export = _export("", other, manifest)
        if _model(manifest, export.spec) != _model(own_manifest, own.spec):
            raise BenchError(
                f"{other} is not of the same model as {repository}; give an export of the same checkpoint and adapters "
                "in another precision"
            )
        if any(export.spec.fingerprint == one.spec.fingerprint for one in found):
            raise BenchError(
                f"{other} is {export.spec.precision} as another one that was given; give an export in another "
                "precision, or vary the settings of one with --vary"
            )
        found.append(replace(export, name=f"precision={export.spec.precision}"))
    return found


def _export(name: str, repository: Path, manifest: Mapping[str, Any]) -> Export:
    return Export(name, repository, ServingSpec.from_dict(manifest["spec"]), settings_of(repository, manifest))


def _model(manifest: Mapping[str, Any], spec: ServingSpec) -> tuple[object, ...]:
    """What exports of one model have in common, in whatever precision and under whatever name."""
    nameless = replace(spec, name="", architecture="", precision="float32", runtime="", fingerprint="")
    source = manifest.get("source", {}).get("weights_sha256")
    adapters = [(one["weight"], sorted(one["files"].values())) for one in manifest.get("adapters", ())]
    return nameless, source, adapters
