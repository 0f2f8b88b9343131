"""The manifest of a model repository: what went in, what came out, and what was proven of it.

Reading and verifying one needs nothing that an export needs, so that it runs on a serving machine.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from tritonclip_export.errors import ExportError, RepositoryError
from tritonclip_export.local_gpu import records
from tritonclip_export.repository import tree
from tritonclip_export.repository.manifest_format import fault_of
from tritonclip_export.repository.signature import SIGNATURE, Signer, require_signature
from tritonclip_export.repository.tree import file_hash

__all__ = ["MANIFEST", "SIGNATURE", "file_hash", "file_hashes", "read_manifest", "save", "verify", "write_manifest"]

MANIFEST = "manifest.json"
MANIFEST_FORMAT = 1
# What `verify` compares: every file, or all but weights and other large data that nobody executes.
ALL, CODE = LEVELS = ("all", "code")
_AGAIN = "export it again, or copy it again from where it was exported"
_NAMED = 5


def write_manifest(repository: Path, content: Mapping[str, Any], signer: Signer | None = None) -> None:
    """Write `manifest.json`: `content`, and the SHA-256 of every file of the repository; and its signature."""
    save(repository, {"format": MANIFEST_FORMAT, **content, "files": file_hashes(repository)}, signer)


def save(folder: Path, manifest: Mapping[str, Any], signer: Signer | None = None) -> None:
    """Write a whole manifest into `folder`, and its signature beside it where there is a `signer`."""
    content = (json.dumps(manifest, indent=2) + "\n").encode()
    (folder / MANIFEST).write_bytes(content)
    if signer is not None:
        (folder / SIGNATURE).write_bytes(signer.sign(content, str(manifest["spec"].get("fingerprint"))))


def sign(repository: Path, signer: Signer) -> dict[str, Any]:
    """Sign what stands in `repository`, once every file was compared with its manifest; returns the manifest.

    Raises:
        RepositoryError: a file is not what the manifest says, or the folder cannot be written to.
    """
    content = _read(repository)
    manifest = verify(repository)
    staged = repository / f"{SIGNATURE}.new"
    try:
        staged.write_bytes(signer.sign(content, str(manifest["spec"].get("fingerprint"))))
        staged.replace(repository / SIGNATURE)
    except OSError as error:
        raise RepositoryError(f"{repository} cannot be written to ({error}); give it your user") from error
    return manifest


def read_manifest(repository: Path, signer: Signer | None = None) -> dict[str, Any]:
    """Read what `write_manifest` wrote: an object whose `spec`, `files`, `settings` and `engines` have their types.

    Args:
        signer: who will sign a change of it, and must have signed what stands there.

    Raises:
        RepositoryError: the directory is no model repository of ours, or of a newer version.
        SignatureError: it is not signed by `signer`.
    """
    content = _read(repository)
    if signer is not None:
        signer.require_own(repository, content)
    return _parse(repository, content)


def _read(repository: Path) -> bytes:
    try:
        return (repository / MANIFEST).read_bytes()
    except OSError as error:
        raise _no_repository(repository, error) from error


def _parse(repository: Path, content: bytes) -> dict[str, Any]:
    try:
        manifest: Any = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _no_repository(repository, error) from error
    given = manifest.get("format") if isinstance(manifest, dict) else MANIFEST_FORMAT
    if type(given) is not int or given != MANIFEST_FORMAT:
        raise RepositoryError(
            f"{repository / MANIFEST} has format {given!r}, this version reads {MANIFEST_FORMAT}; export again"
        )
    fault = fault_of(manifest)
    if fault is not None:
        raise RepositoryError(f"{repository / MANIFEST} is damaged: {fault}; {_AGAIN}")
    checked: dict[str, Any] = manifest
    return checked


def _no_repository(repository: Path, why: Exception) -> RepositoryError:
    return RepositoryError(
        f"{repository} is no model repository: {MANIFEST} cannot be read ({why}); make one with `tritonclip export`"
    )


def verify(
    repository: Path, without: Collection[str] = (), *, level: str = ALL, key: str | None = None
) -> dict[str, Any]:
    """Compare a repository with its manifest, and the configs with the spec in it; returns the manifest.

    Args:
        without: paths that may be missing or changed.
        level: one of LEVELS.
        key: of whoever must have signed the manifest: minisign's public key, or a file with it.

    Raises:
        RepositoryError: names what is missing, changed or unknown.
        SignatureError: the manifest is not signed by `key`.
    """
    content = _read(repository)
    if key is not None:
        require_signature(repository, content, key)
    manifest = _parse(repository, content)
    problems = _compare_files(repository, manifest["files"], without, level)
    problems = problems or _compare_configs(repository, manifest)
    if problems:
        named = [f"{name} {what}" for name, what in problems.items()]
        more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
        raise RepositoryError(
            f"{repository} is not what was exported: {'; '.join(named[:_NAMED])}{more}; "
            f"{_advice(repository, manifest, problems)}"
        )
    return manifest


def _compare_files(repository: Path, wanted: Mapping[str, str], without: Collection[str], level: str) -> dict[str, str]:
    present, problems = tree.look(repository)
    for own in (MANIFEST, SIGNATURE):
        present.pop(own, None)
    problems |= {name: "is not in the manifest" for name in present if name not in wanted}
    problems |= {name: "is missing" for name in wanted if name not in present and name not in problems}
    asked = [name for name in wanted if name in present and (level == ALL or _always(name, present[name]))]
    try:
        problems |= dict.fromkeys(tree.compare(repository, wanted, asked), "was changed")
    except OSError as error:
        raise RepositoryError(
            f"{error.filename} cannot be read ({error.strerror}), so that it was not compared with the manifest; let "
            "this user read it"
        ) from error
    return {name: what for name, what in problems.items() if name not in without}


def _always(name: str, size: int) -> bool:
    return size < tree.LARGE or tree.is_executed(name)


def _compare_configs(repository: Path, manifest: Mapping[str, Any]) -> dict[str, str]:
    """The spec stands in the manifest and in the ensembles' configs, where servers and clients read it."""
    # Triton's protobuf takes long to import.
    from tritonclip_export.repository.configs import CONFIG, SERVING_SPEC, read_config

    problems = {}
    for name in manifest["files"]:
        if name.count("/") != 1 or not name.endswith(f"/{CONFIG}"):
            continue
        parameters = read_config(repository / name).parameters
        if "fingerprint" in parameters:
            if parameters["fingerprint"].string_value != manifest["spec"].get("fingerprint"):
                problems[name] = "carries another fingerprint than the manifest"
            elif parameters[SERVING_SPEC].string_value != _spec_json(repository, manifest["spec"]):
                problems[name] = "carries another serving spec than the manifest"
    return problems


def _spec_json(repository: Path, spec: Mapping[str, Any]) -> str:
    from tritonclip_export.spec import ServingSpec

    try:
        return ServingSpec.from_dict(spec).to_json()
    except ExportError as error:
        raise RepositoryError(f"{repository / MANIFEST} is damaged: {error}; {_AGAIN}") from error


def _advice(repository: Path, manifest: Mapping[str, Any], problems: Mapping[str, str]) -> str:
    from tritonclip_export.repository.staging import cut_short

    if cut_short(repository):
        return f"a change of it was cut short; undo it with: tritonclip configure {repository}"
    engines = {record["file"] for record in records(manifest)}
    if set(problems) <= engines:
        return f"build its engines again: tritonclip engine build {repository}"
    if not set(problems) & set(manifest["files"]):
        return "nothing of that is used: delete it, or copy the repository again from where it was exported"
    return _AGAIN


def file_hashes(repository: Path) -> dict[str, str]:
    """Path relative to `repository` to SHA-256, for every file but the manifest and its signature.

    Raises:
        RepositoryError: a link, a cache of Python or an empty folder is among them, which no manifest can list.
    """
    files, faults = tree.look(repository)
    if faults:
        name, what = next(iter(faults.items()))
        raise RepositoryError(f"{repository / name} {what}; remove it")
    return tree.hashes(repository, sorted(set(files) - {MANIFEST, SIGNATURE}))
