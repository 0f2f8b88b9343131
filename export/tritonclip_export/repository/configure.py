"""Changes how an exported repository is served, without exporting it again: all of a change, or none of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tritonclip_export.errors import RepositoryError
from tritonclip_export.local_gpu import ENGINES, records
from tritonclip_export.repository.configs import CONFIG, read_config, read_configs, served_configs, write_configs
from tritonclip_export.repository.dali import DALI_ONLY, dali_files
from tritonclip_export.repository.encoders import ENCODERS
from tritonclip_export.repository.in_place import commit, repository_lock, staged_beside, write_files
from tritonclip_export.repository.manifest import file_hash, read_manifest, save, verify
from tritonclip_export.repository.signature import Signer
from tritonclip_export.repository.staging import sweep
from tritonclip_export.repository.templates import templates
from tritonclip_export.settings import DALI, TENSORRT, Settings
from tritonclip_export.spec import ServingSpec

SETTINGS = "settings"


def configure(
    repository: Path, changes: Mapping[str, Any], signer: Signer | None = None
) -> tuple[Settings, Settings, list[str]]:
    """Serve `repository` with other settings; returns those before and after, and the files that changed.

    A change that was killed halfway is undone first.

    Args:
        changes: attributes of `Settings`; what is not named stays.
        signer: signs the changed manifest; without, a signature goes.

    Raises:
        ExportError: a setting cannot be had, the repository is not what was exported, or cannot be written to.
    """
    repository = repository.resolve()
    sweep(repository)
    before = settings_of(repository, read_manifest(repository))
    if before.changed(changes) == before:
        return before, before, []
    with staged_beside(repository, "settings") as staging, repository_lock(repository):
        manifest = read_manifest(repository, signer)
        before = settings_of(repository, manifest)
        settings = before.changed(changes)
        # An engine that is cut in half is no reason to stay with engines.
        engines = [] if settings.runtime == TENSORRT else [one["file"] for one in records(manifest)]
        verify(repository, without=engines)
        manifest, written = stage(repository, manifest, settings, staging)
        publish(repository, manifest, written, staging, signer)
    return before, settings, written


def settings_of(repository: Path, manifest: Mapping[str, Any]) -> Settings:
    """The settings that a manifest records; of one that an earlier version wrote, what its configs say."""
    if SETTINGS in manifest:
        return Settings.from_dict(manifest[SETTINGS])
    image, text, preprocess = (read_config(repository / name / CONFIG) for name in (*ENCODERS, "preprocess"))
    return Settings(
        image_batch=image.max_batch_size,
        text_batch=text.max_batch_size,
        preprocess_threads=int(preprocess.parameters["threads"].string_value or 1),
        threads=int(image.parameters["threads"].string_value or 0),
        runtime=manifest["spec"]["runtime"],
    )


def stage(
    repository: Path, manifest: Mapping[str, Any], settings: Settings, staging: Path
) -> tuple[dict[str, Any], list[str]]:
    """Write the configs that `settings` change below `staging`; returns the manifest with them, and their names.

    Raises:
        EngineError: an engine is missing or too small.
    """
    spec = replace(ServingSpec.from_dict(manifest["spec"]), runtime=settings.runtime)
    before = read_configs(repository)
    after = served_configs(before, spec, settings, manifest.get(ENGINES, {}))
    changed = {name: config for name, config in after.items() if config != before.get(name)}
    write_configs(staging, changed)
    files = {}
    if settings.preprocess == DALI:
        _require_same_code(repository)
        files = _changed_files(repository, dali_files(spec.image, settings))
    write_files(staging, files)
    content = {**manifest, "spec": asdict(spec), SETTINGS: settings.to_dict()}
    return content, [*(f"{name}/{CONFIG}" for name in changed), *files]


def _require_same_code(repository: Path) -> None:
    """DALI's router calls the decoder that is there, whose code has to be that of this version."""
    folder = Path("preprocess") / "1"
    for file in sorted((repository / folder).glob("*.py")):
        own = templates() / folder / file.name
        if not own.is_file() or file.read_bytes() != own.read_bytes():
            raise RepositoryError(
                f"{repository} was exported by another version of tritonclip ({folder / file.name} differs), and "
                "DALI's files need this one's; export it again with --preprocess dali"
            )


def _changed_files(repository: Path, files: Mapping[str, bytes]) -> dict[str, bytes]:
    there = {path: repository / path for path in files}
    return {path: new for path, new in files.items() if not there[path].is_file() or there[path].read_bytes() != new}


def publish(
    repository: Path, manifest: Mapping[str, Any], written: list[str], staging: Path, signer: Signer | None = None
) -> None:
    """Move the files `written` below `staging` into `repository`, and the manifest with their hashes after them.

    Where the settings of `manifest` are the CPU's, what only DALI has goes.
    """
    removed = () if manifest.get(SETTINGS, {}).get("preprocess") == DALI else DALI_ONLY
    kept = {name: digest for name, digest in manifest["files"].items() if not name.startswith(tuple(removed))}
    files = {**kept, **{name: file_hash(staging / name) for name in written}}
    save(staging, {**manifest, "files": dict(sorted(files.items()))}, signer)
    commit(staging, repository, written, removed)
