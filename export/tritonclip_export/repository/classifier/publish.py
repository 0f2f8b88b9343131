"""Adds a classifier to a model repository: its two models and its place in the manifest, or nothing at all."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from tritonclip_export.errors import ClassifierError
from tritonclip_export.repository.classifier.classifier_head import ClassifierHead
from tritonclip_export.repository.configs import read_config, write_configs
from tritonclip_export.repository.in_place import commit, repository_lock, staged_beside
from tritonclip_export.repository.manifest import file_hashes, read_manifest, save
from tritonclip_export.repository.signature import Signer

CLASSIFIERS = "classifiers"
# Parameters of the config of classify_NAME: a JSON list, and the number of the version that has it.
LABELS, VERSION = "labels", "version"
TEMPLATE = Path(__file__).with_name("head")
DEFAULT_TOP_K = 5
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def model_names(name: str) -> tuple[str, str]:
    """The models of a classifier: the head, and the ensemble that callers ask."""
    return f"classifier_head_{name}", f"classify_{name}"


def check_name(repository: Path, name: str, *, force: bool) -> None:
    """Refuse a name that cannot be a model's, or that is taken.

    Raises:
        ClassifierError: says what stands there and what to do.
    """
    if not _NAME.fullmatch(name):
        raise ClassifierError(f"the name {name!r} given; letters, digits, _ and - are allowed, 64 at most")
    taken = [model for model in model_names(name) if (repository / model).exists()]
    if not taken:
        return
    if name not in read_manifest(repository).get(CLASSIFIERS, {}):
        raise ClassifierError(f"{repository} has a model {taken[0]} that is no classifier's; give another --name")
    if not force:
        raise ClassifierError(
            f"{repository} already has a classifier {name!r}; give another --name, or --force to replace it"
        )


def publish(
    repository: Path,
    name: str,
    head: ClassifierHead,
    *,
    top_k: int | None = None,
    force: bool = False,
    signer: Signer | None = None,
) -> None:
    """Write a classifier beside `repository`, then rename it into its place.

    Args:
        top_k: classes in an answer; None for 5, or all where there are fewer.
        signer: signs the changed manifest; without, a signature goes.

    Raises:
        ClassifierError: the name is taken or none, or the classifier does not fit the repository.
        RepositoryError: the repository, or the directory that it is in, cannot be written to.
    """
    # Where the repository is a link, what it points to is changed.
    repository = repository.resolve()
    with staged_beside(repository, "classifier") as staging, repository_lock(repository):
        check_name(repository, name, force=force)
        manifest = read_manifest(repository, signer)
        _check_width(head, manifest)
        count = _count(top_k, len(head.labels))
        _write_head(staging / model_names(name)[0], head, repository, count)
        _write_ensemble(staging / model_names(name)[1], name, repository, count)
        record = {"method": head.method, "labels": len(head.labels), "top_k": count, **head.record}
        save(staging, _with_classifier(manifest, name, record, file_hashes(staging)), signer)
        commit(staging, repository, model_names(name))


def _count(top_k: int | None, labels: int) -> int:
    if top_k is None:
        return min(DEFAULT_TOP_K, labels)
    if not 1 <= top_k <= labels:
        raise ClassifierError(f"top-k is {top_k}; 1 to {labels}, the number of labels, are allowed")
    return top_k


def _check_width(head: ClassifierHead, manifest: dict[str, Any]) -> None:
    width = manifest["spec"]["embedding_dim"]
    if head.weights.shape[1] != width:
        raise ClassifierError(
            f"the class matrix is {head.weights.shape[1]} wide, the repository's image embeddings {width}; both must "
            "come from the same checkpoint"
        )


def _write_head(folder: Path, head: ClassifierHead, repository: Path, count: int) -> None:
    shutil.copytree(TEMPLATE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    # The same code turns logits into probabilities as in `similarity`.
    shutil.copyfile(repository / "similarity" / "1" / "clip_scores.py", folder / "1" / "clip_scores.py")
    for name, array in head.arrays().items():
        np.save(folder / "1" / f"{name}.npy", np.ascontiguousarray(array, np.float32))
    config = read_config(folder / "config.pbtxt")
    config.name = folder.name
    config.max_batch_size = read_config(repository / "embed_image" / "config.pbtxt").max_batch_size
    config.input[0].dims[:] = [head.weights.shape[1]]
    for tensor in config.output:
        tensor.dims[:] = [count]
    parameters = {
        LABELS: json.dumps(list(head.labels), ensure_ascii=False),
        "scoring": head.scoring.kind,
        "logit_scale": repr(head.scoring.logit_scale),
    }
    if head.cache:
        parameters |= {"alpha": repr(head.cache.alpha), "beta": repr(head.cache.beta)}
    for key, value in parameters.items():
        config.parameters[key].string_value = value
    write_configs(folder.parent, {folder.name: config})


def _write_ensemble(folder: Path, name: str, repository: Path, count: int) -> None:
    """`embed_image` with one step more; it keeps the serving spec and the fingerprint."""
    config = read_config(repository / "embed_image" / "config.pbtxt")
    head = read_config(folder.parent / model_names(name)[0] / "config.pbtxt")
    config.name = folder.name
    config.output.clear()
    config.output.extend(head.output)
    steps = config.ensemble_scheduling.step
    steps[-1].output_map["image_embedding"] = "image_embedding"
    step = steps.add(model_name=head.name, model_version=-1)
    step.input_map["image_embedding"] = "image_embedding"
    for tensor in head.output:
        step.output_map[tensor.name] = tensor.name
    # Triton names the version with every answer: a client sees that the labels it knows are of another one.
    version = _version(folder.parent / head.name, config.parameters["fingerprint"].string_value)
    config.parameters[LABELS].string_value = head.parameters[LABELS].string_value
    config.parameters[VERSION].string_value = str(version)
    shutil.copytree(repository / "embed_image" / "1", folder / str(version))
    write_configs(folder.parent, {folder.name: config})


def _version(head: Path, fingerprint: str) -> int:
    """A number that only this head on these towers has, of 60 bits."""
    content = json.dumps([fingerprint, file_hashes(head)])
    return int(hashlib.sha256(content.encode()).hexdigest()[:15], 16) or 1


def _with_classifier(
    manifest: dict[str, Any], name: str, record: dict[str, Any], files: dict[str, str]
) -> dict[str, Any]:
    """The manifest with this classifier in it; what it says about every other file is left as it is."""
    folders = model_names(name)
    kept = {path: digest for path, digest in manifest["files"].items() if path.split("/")[0] not in folders}
    classifiers = {**manifest.get(CLASSIFIERS, {}), name: record}
    return {**manifest, CLASSIFIERS: classifiers, "files": dict(sorted({**kept, **files}.items()))}
