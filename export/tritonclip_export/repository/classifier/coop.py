"""CoOp's learned prompts (arXiv:2109.01134): class embeddings are constants, so they are computed once, here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tritonclip_export.checkpoints.checkpoint import Checkpoint
from tritonclip_export.errors import ClassifierError
from tritonclip_export.frameworks import torch
from tritonclip_export.repository.classifier.classifier_head import ClassifierHead, Floats
from tritonclip_export.repository.classifier.tensors import read_arrays
from tritonclip_export.repository.classifier.text_tower import TextTower
from tritonclip_export.repository.manifest import file_hash
from tritonclip_export.spec import ScoringSpec

BATCH = 64
# Embeddings of the same text tower in two runtimes, float16 weights of the training included.
_SAME_TOWER_COSINE = 0.9995
# Relative to their length: token embeddings in float16 and float32.
_SAME_VECTOR = 0.02

_REFUSED = {
    "meta_net.": "CoCoOp's prompts depend on the image (meta_net), so that every image would need the text tower "
    "again for every class; train CoOp, or serve the checkpoint's own prompts",
    "compound_prompt": "MaPLe's prompts change the image tower too, a classifier leaves it as it is; train CoOp",
}


def from_coop(
    repository: Path,
    learner: Path,
    checkpoint: Checkpoint,
    labels: Sequence[str],
    scoring: ScoringSpec,
    position: str = "end",
) -> ClassifierHead:
    """Run learned prompts through the text tower that they were trained on.

    Args:
        learner: prompt_learner/model.pth.tar-EPOCH, or model-best.pth.tar.
        checkpoint: the CLIP of the training; its text tower must be the repository's.
        labels: the class names of the training, in its order; _ is read as a space, as CoOp does.
        position: CLASS_TOKEN_POSITION of the training, which the file does not hold.

    Raises:
        ClassifierError: what is no CoOp prompt learner, or does not go with the labels or the repository.
    """
    tensors = read_arrays(learner)
    context = _context(tensors, learner, len(labels))
    tower = TextTower(repository)
    _check_tokenizer(tower)
    names = [label.replace("_", " ") for label in labels]
    model = checkpoint.build()
    _check_same_tower(model, tower, names)
    prompts = _Prompts(model, tower, context, names, position)
    _check_training(prompts, tensors, learner)
    embeddings = np.concatenate([prompts.embed(start, start + BATCH) for start in range(0, len(names), BATCH)])
    record = {"files": {learner.name: file_hash(learner)}, "class_token_position": position}
    return ClassifierHead.of_embeddings(labels, embeddings, scoring, method="coop", record=record)


class _Prompts:
    """The prompts of all classes: token ids with placeholders, which the learned vectors take the place of."""

    def __init__(self, model: Any, tower: TextTower, context: Floats, names: Sequence[str], position: str) -> None:
        self._model = model
        self._context = torch.from_numpy(context)
        self._length = context.shape[1]
        self._table = _token_embedding(model, int(tower.parameters["eot_id"]))
        if context.shape[2] != self._table.embedding_dim:
            raise ClassifierError(
                f"the context's vectors are {context.shape[2]} wide, the checkpoint's token embeddings "
                f"{self._table.embedding_dim}; give the CLIP that the prompts were learned for"
            )
        self.ids = _full_ids(tower, [" ".join(["X"] * self._length) + f" {name}." for name in names])
        ends = _full_ids(tower, names).argmax(axis=1)
        self._order = torch.from_numpy(np.stack([self._places(int(end) - 1, position) for end in ends]))

    def embed(self, start: int, stop: int) -> Floats:
        """Unit-length class embeddings, float32 [stop - start, D]."""
        rows = slice(start, stop)

        def replace(_module: Any, _inputs: Any, embedded: torch.Tensor) -> torch.Tensor:
            embedded = embedded.clone()
            embedded[:, 1 : 1 + self._length] = self._context[rows]
            return embedded.gather(1, self._order[rows, :, None].expand_as(embedded))

        handle = self._table.register_forward_hook(replace)
        try:
            return _encode(self._model, self.ids[rows])
        finally:
            handle.remove()

    def embedded_ids(self) -> Floats:
        """The token embeddings before anything is replaced: [C, L, width]."""
        with torch.no_grad():
            vectors: Floats = self._table(torch.from_numpy(self.ids).long()).numpy()
        return vectors

    def _places(self, name_length: int, position: str) -> npt.NDArray[np.int64]:
        """Where each vector of a prompt comes from: the name's move into or before the context's."""
        places = list(range(self.ids.shape[1]))
        context, after = places[1 : 1 + self._length], 1 + self._length + name_length
        name = places[1 + self._length : after]
        before = {"end": self._length, "middle": self._length // 2, "front": 0}[position]
        return np.array([0, *context[:before], *name, *context[before:], *places[after:]])


def _context(tensors: Mapping[str, Floats], path: Path, classes: int) -> Floats:
    """The learned vectors, float32 [C, n, width]; a generic context is the same for every class."""
    for part, reason in _REFUSED.items():
        if any(part in name for name in tensors):
            raise ClassifierError(f"{path}: {reason}")
    name = next((name for name in tensors if name.removeprefix("prompt_learner.") == "ctx"), None)
    if name is None or tensors[name].ndim not in (2, 3):
        raise ClassifierError(
            f"{path} has no learned context `ctx` [n, width] or [classes, n, width] "
            f"(it has {', '.join(list(tensors)[:4])}); give CoOp's prompt_learner/model.pth.tar-EPOCH"
        )
    context = tensors[name]
    if not np.isfinite(context).all():
        raise ClassifierError(
            f"{path}: the learned context holds NaN or infinity; give one of a training that went well"
        )
    if context.ndim == 2:
        return np.broadcast_to(context, (classes, *context.shape)).copy()
    if len(context) != classes:
        raise ClassifierError(f"{path} has contexts for {len(context)} classes, {classes} labels were given")
    return context


def _token_embedding(model: Any, highest_id: int) -> torch.nn.Embedding:
    tables = [
        module
        for module in model.modules()
        if isinstance(module, torch.nn.Embedding) and module.num_embeddings > highest_id
    ]
    if len(tables) != 1:
        raise ClassifierError(f"the checkpoint has {len(tables)} tables of token embeddings; CoOp is made for a CLIP")
    return tables[0]


def _full_ids(tower: TextTower, texts: Sequence[str]) -> npt.NDArray[np.int32]:
    """Token ids padded to the context, as CLIP's own tokenizer pads."""
    ids, cut = tower.tokenize(texts)
    if cut.any():
        raise ClassifierError(f"the prompt of {texts[int(cut.argmax())]!r} does not fit the context; shorten the label")
    padding = int(tower.parameters["context_length"]) - ids.shape[1]
    return np.pad(ids, ((0, 0), (0, padding)), constant_values=int(tower.parameters["pad_id"]))


def _encode(model: Any, ids: npt.NDArray[np.int32]) -> Floats:
    with torch.no_grad():
        features = model.encode_text(torch.from_numpy(ids).long())
        unit: Floats = torch.nn.functional.normalize(features.float(), dim=-1).numpy()
    return unit


def _check_tokenizer(tower: TextTower) -> None:
    kind = tower.parameters.get("kind", "clip")
    if kind != "clip":
        raise ClassifierError(f"CoOp is made for CLIP's byte-pair tokenizer, this repository's is of the kind {kind!r}")


def _check_same_tower(model: Any, tower: TextTower, names: Sequence[str]) -> None:
    some = names[:BATCH]
    cosine = float((_encode(model, _full_ids(tower, some)) * tower.embed(some)[0]).sum(axis=1).min())
    if cosine < _SAME_TOWER_COSINE:
        raise ClassifierError(
            f"the checkpoint's text tower is not the repository's: embeddings differ (cosine {cosine:.4f}); "
            "give the checkpoint that was exported; where adapters were merged into its text tower, export one without"
        )


def _check_training(prompts: _Prompts, tensors: Mapping[str, Floats], path: Path) -> None:
    """The file keeps the embeddings of its start token and of its class names: they tell what it was trained on."""
    ours = prompts.embedded_ids()
    stored = {name.removeprefix("prompt_learner."): tensor for name, tensor in tensors.items()}
    prefix, suffix = stored.get("token_prefix"), stored.get("token_suffix")
    if prefix is not None and _differ(prefix[:1], ours[:1, :1]).any():
        raise ClassifierError(f"{path} was trained on another CLIP: its start token is not the checkpoint's")
    if suffix is None or stored["ctx"].ndim == 2:
        return
    wrong = _differ(suffix, ours[:, -suffix.shape[1] :])
    if wrong.any():
        raise ClassifierError(
            f"{path} has a context of its own for every class, and class {int(wrong.argmax())} was not the label given "
            "at its place; give the class names of the training in its order"
        )


def _differ(given: Floats, ours: Floats) -> npt.NDArray[np.bool_]:
    """Which of the classes have other vectors: [C, L, width] twice to bool [C]."""
    if given.shape != ours.shape:
        return np.ones(len(ours), bool)
    distance = np.linalg.norm(given - ours, axis=-1) / np.linalg.norm(ours, axis=-1)
    wrong: npt.NDArray[np.bool_] = (distance > _SAME_VECTOR).any(axis=1)
    return wrong
