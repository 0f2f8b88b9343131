"""The ways to a classifier that need no PyTorch model: prompts, Tip-Adapter's cache, a ready matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from tritonclip_export.errors import ClassifierError
from tritonclip_export.repository.classifier.classifier_head import Cache, ClassifierHead, Floats
from tritonclip_export.repository.classifier.tensors import read_array, read_arrays
from tritonclip_export.repository.classifier.text_tower import TextTower, class_embeddings
from tritonclip_export.repository.manifest import file_hash
from tritonclip_export.spec import ScoringSpec

# What Tip-Adapter's code multiplies cosines with, whatever the checkpoint's own scale is.
TIP_ADAPTER_SCALE = 100.0
# Rows of float16 class embeddings are off by this much.
_UNIT_TOLERANCE = 5e-3


def from_prompts(
    repository: Path, labels: Sequence[str], templates: Sequence[str], scoring: ScoringSpec
) -> ClassifierHead:
    """Score class embeddings, each the mean of a label's prompts (`class_embeddings`)."""
    embeddings, cut = class_embeddings(TextTower(repository), labels, templates)
    record = {"templates": list(templates), "prompts_cut_to_the_context": cut}
    return ClassifierHead.of_embeddings(labels, embeddings, scoring, method="prompts", record=record)


def from_tip_adapter(
    zero_shot: ClassifierHead, keys: Path, values: Path, alpha: float, beta: float, *, tuned: bool
) -> ClassifierHead:
    """Put Tip-Adapter's cache on top of a zero-shot classifier.

    Args:
        keys: keys_Nshots.pt [D, N], or, where `tuned`, best_F_Nshots.pt [N, D] of Tip-Adapter-F.
        values: values_Nshots.pt, one-hot [N, C].

    Raises:
        ClassifierError: files that do not go together or with the labels, or a checkpoint scored by sigmoids.
    """
    if zero_shot.scoring.kind != "softmax":
        raise ClassifierError(
            f"Tip-Adapter's logits go into a softmax, this repository scores with a {zero_shot.scoring.kind}; "
            "build a classifier of prompts or of a matrix instead"
        )
    if not (np.isfinite([alpha, beta]).all() and beta > 0):
        raise ClassifierError(f"alpha is {alpha}, beta {beta}; both must be finite and beta above 0")
    matrix, classes = read_array(keys), read_array(values)
    _check_cache(matrix, classes, zero_shot, tuned=tuned)
    cache = Cache(matrix if tuned else matrix.T, classes, alpha, beta)
    inputs = {path.name: file_hash(path) for path in (keys, values)}
    record = {**zero_shot.record, "alpha": alpha, "beta": beta, "shots": len(classes), "files": inputs}
    scoring = replace(zero_shot.scoring, logit_scale=TIP_ADAPTER_SCALE)
    method = "tip-adapter-f" if tuned else "tip-adapter"
    return replace(zero_shot, scoring=scoring, cache=cache, method=method, record=record)


def from_matrix(
    path: Path,
    labels: Sequence[str],
    width: int,
    scoring: ScoringSpec,
    *,
    key: str | None = None,
    logit_scale: float | None = None,
    normalize: bool = False,
) -> ClassifierHead:
    """A matrix made elsewhere: class embeddings [C, D], or the weights of a linear head trained on image embeddings.

    Args:
        path: [C, D], or [D, C] where that can be told apart; in a state dict with its bias beside it.
        key: its name, where the file holds several.
        logit_scale: of a linear head: logits = `logit_scale` * (weights f + bias). Rows of unit length need none:
            they are scored as the repository scores texts.
        normalize: bring the rows to unit length: class embeddings that were saved as they came.

    Raises:
        ClassifierError: no such matrix, another number of classes or width, or rows that may mean two things.
    """
    if logit_scale is not None and (normalize or not np.isfinite(logit_scale)):
        raise ClassifierError(f"logit-scale is {logit_scale}; give a finite number, and no --normalize beside it")
    arrays = read_arrays(path)
    name = _matrix_name(arrays, key, path)
    weights = _oriented(arrays[name], len(labels), width, path)
    record = {"files": {path.name: file_hash(path)}, "key": name, "normalized": normalize}
    if logit_scale is not None:
        bias = arrays.get(f"{name.removesuffix('weight')}bias", np.zeros(len(labels), np.float32))
        head = replace(scoring, logit_scale=logit_scale, logit_bias=0.0)
        return ClassifierHead(labels, weights, logit_scale * bias, head, "linear", record=record)
    lengths = np.linalg.norm(weights, axis=1, keepdims=True)
    if not normalize and np.abs(lengths - 1).max() > _UNIT_TOLERANCE:
        raise ClassifierError(
            f"{path} has rows of length {lengths.min():.4g} to {lengths.max():.4g}, not 1; give --normalize for class "
            "embeddings, or --logit-scale for a linear head (1 where its weights say it all, 100 for a cross-modal one)"
        )
    if not lengths.all():
        raise ClassifierError(f"{path} has a row of zeros, for {labels[int(lengths.argmin())]!r}; leave the label out")
    return ClassifierHead.of_embeddings(labels, weights / lengths, scoring, method="matrix", record=record)


def _check_cache(keys: Floats, values: Floats, zero_shot: ClassifierHead, *, tuned: bool) -> None:
    if values.ndim != 2 or values.shape[1] != len(zero_shot.labels):
        raise ClassifierError(
            f"the values are {list(values.shape)}, not [shots, {len(zero_shot.labels)}]: one column for every label"
        )
    stored = (len(values), zero_shot.weights.shape[1])
    wanted = stored if tuned else stored[::-1]
    if keys.shape != wanted:
        other = "leave out --tuned" if tuned else "give --tuned for a best_F file"
        hint = f"; {other}" if keys.shape == wanted[::-1] else "; both must be of one cache of this checkpoint"
        raise ClassifierError(f"the keys are {list(keys.shape)}, not {list(wanted)}{hint}")


def _matrix_name(arrays: dict[str, Floats], key: str | None, path: Path) -> str:
    matrices = [name for name, array in arrays.items() if array.ndim == 2]
    shown = ", ".join(name or "unnamed" for name in matrices[:6]) or "none"
    if key is not None and key not in matrices:
        raise ClassifierError(f"{path} has no matrix {key!r}; it has {shown}")
    if key is None and len(matrices) != 1:
        raise ClassifierError(f"{path} holds {len(matrices)} matrices ({shown}); name one with --key")
    return matrices[0] if key is None else key


def _oriented(matrix: Floats, classes: int, width: int, path: Path) -> Floats:
    if matrix.shape == (classes, width):
        return matrix
    if matrix.shape == (width, classes):
        return matrix.T
    raise ClassifierError(
        f"{path} is {list(matrix.shape)}; for {classes} labels and this repository's image embeddings it must be "
        f"[{classes}, {width}]"
    )
