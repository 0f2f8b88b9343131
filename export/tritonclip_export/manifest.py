"""The manifest of a model repository: what went in, what came out, and what was proven of it.

Reading and verifying one needs nothing that an export needs, so that it runs on a serving machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from tritonclip_export.configs import ENSEMBLES, read_config
from tritonclip_export.engine.here import records
from tritonclip_export.errors import RepositoryError

MANIFEST = "manifest.json"
MANIFEST_FORMAT = 1
_AGAIN = "export it again, or copy it again from where it was exported"


def write_manifest(repository: Path, content: Mapping[str, Any]) -> None:
    """Write `manifest.json`: `content`, and the SHA-256 of every file of the repository."""
    manifest = {"format": MANIFEST_FORMAT, **content, "files": file_hashes(repository)}
    (repository / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def read_manifest(repository: Path) -> dict[str, Any]:
    """Read what `write_manifest` wrote.

    Raises:
        RepositoryError: the directory is no model repository of ours, or of a newer version.
    """
    path = repository / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RepositoryError(
            f"{repository} is no model repository: {path.name} cannot be read ({error}); "
            "make one with `tritonclip export`"
        ) from error
    if manifest.get("format") != MANIFEST_FORMAT:
        raise RepositoryError(
            f"{path} has format {manifest.get('format')!r}, this version reads {MANIFEST_FORMAT}; export again"
        )
    return manifest


def verify(repository: Path, without: Collection[str] = ()) -> dict[str, Any]:
    """Compare every file but those `without` with the manifest, and every ensemble's fingerprint; returns the manifest.

    Raises:
        RepositoryError: names the files that are missing, changed or unknown.
    """
    manifest = read_manifest(repository)
    wanted, present = manifest["files"], file_hashes(repository)
    changed = {name: "is missing" for name in wanted if name not in present}
    changed |= {name: "is not in the manifest" for name in present if name not in wanted}
    changed |= {name: "was changed" for name in wanted if name in present and present[name] != wanted[name]}
    folders = [path for path in repository.rglob("*") if path.is_dir() and "__pycache__" not in path.parts]
    empty = [path for path in folders if not any(path.iterdir())]
    changed |= {path.relative_to(repository).as_posix(): "is an empty folder" for path in empty}
    problems = {name: what for name, what in changed.items() if name not in without}
    for name in ENSEMBLES:
        if not problems:
            parameters = read_config(repository / name / "config.pbtxt").parameters
            if parameters["fingerprint"].string_value != manifest["spec"]["fingerprint"]:
                problems[f"{name}/config.pbtxt"] = "carries another fingerprint than the manifest"
    if problems:
        named = [f"{name} {what}" for name, what in problems.items()]
        more = f" and {len(named) - 5} more" if len(named) > 5 else ""
        engines = {record["file"] for record in records(manifest)}
        again = f"build its engines again: tritonclip engine build {repository}" if set(problems) <= engines else _AGAIN
        raise RepositoryError(f"{repository} is not what was exported: {'; '.join(named[:5])}{more}; {again}")
    return manifest


def file_hashes(repository: Path) -> dict[str, str]:
    """Path relative to `repository` to SHA-256, for every file but the manifest and Python's caches."""
    files = sorted(p for p in repository.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {p.relative_to(repository).as_posix(): file_hash(p) for p in files if p.name != MANIFEST}


def file_hash(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
