"""The text tower of a model repository, run here: its own tokenizer and its own graph, without torch."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tritonclip_export.errors import ClassifierError
from tritonclip_export.repository.classifier.prompts import fill
from tritonclip_export.repository.configs import read_config

BATCH = 64
# On a GPU float32 would be rounded to ten bits of mantissa before every product.
_PROVIDERS: dict[str, dict[str, str]] = {"CUDAExecutionProvider": {"use_tf32": "0"}, "CPUExecutionProvider": {}}


class RepositoryTokenizer:
    """Texts to ids, exactly as the repository serves them."""

    def __init__(self, repository: Path) -> None:
        self.parameters = _parameters(repository / "tokenizer")
        folder = repository / "tokenizer" / "1"
        with importable(folder):
            code: Any = importlib.import_module("clip_tokenize")
        settings = code.settings_from(self.parameters)
        self._tokenizer = code.open_tokenizer(folder / self.parameters["tokenizer_file"], settings)
        self._text_error: type[Exception] = code.TextError

    def tokenize(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        """Token ids, int32 [N, L], and whether each text was cut, bool [N].

        Raises:
            ClassifierError: a text that the tokenizer refuses.
        """
        try:
            tokens = self._tokenizer.encode([text.encode() for text in texts])
        except (self._text_error, UnicodeEncodeError) as error:
            raise ClassifierError(f"of the prompts from {texts[0][:40]!r} on, {error}") from error
        return tokens.ids, tokens.truncated.ravel()


class TextTower(RepositoryTokenizer):
    """Texts to embeddings, exactly as the repository serves them.

    Raises:
        ClassifierError: the repository holds no ONNX text tower.
    """

    def __init__(self, repository: Path) -> None:
        super().__init__(repository)
        graph = _parameters(repository / "text_encoder").get("model_file", "model.onnx")
        self._session = _session(repository / "text_encoder" / "1" / graph)

    def embed(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.float32], int]:
        """Unit-length embeddings, float32 [N, D], and how many of the texts were cut to the context."""
        parts, cut = [], 0
        for start in range(0, len(texts), BATCH):
            ids, truncated = self.tokenize(texts[start : start + BATCH])
            parts.append(self._session.run(None, {self._session.get_inputs()[0].name: ids})[0])
            cut += int(truncated.sum())
        return np.concatenate(parts), cut


def class_embeddings(
    tower: TextTower, labels: Sequence[str], templates: Sequence[str]
) -> tuple[npt.NDArray[np.float32], int]:
    """One unit vector a label, float32 [C, D]: the mean of its prompts' unit vectors (arXiv:2103.00020, 3.1.4).

    Returns:
        the embeddings, and how many prompts were cut to the context.

    Raises:
        ClassifierError: two labels that the tokenizer does not tell apart.
    """
    _check_distinct(tower, labels)
    total, cut = np.zeros((), np.float64), 0
    for template in templates:
        embedded, count = tower.embed([fill(template, label) for label in labels])
        total, cut = total + embedded, cut + count
    classes: npt.NDArray[np.float32] = (total / np.linalg.norm(total, axis=1, keepdims=True)).astype(np.float32)
    return classes, cut


def _check_distinct(tower: TextTower, labels: Sequence[str]) -> None:
    first: dict[bytes, str] = {}
    for label, ids in zip(labels, tower.tokenize(labels)[0], strict=True):
        other = first.setdefault(ids.tobytes(), label)
        if other is not label:
            raise ClassifierError(
                f"the labels {other!r} and {label!r} are the same text to this tokenizer and would share their "
                "probability; leave one out"
            )


def _parameters(model: Path) -> dict[str, str]:
    return {key: value.string_value for key, value in read_config(model / "config.pbtxt").parameters.items()}


def _session(path: Path) -> Any:
    import onnxruntime

    if not path.is_file():
        raise ClassifierError(f"{path} is missing; a classifier is built where the text tower is an ONNX graph")
    providers = [(name, _PROVIDERS[name]) for name in _PROVIDERS if name in onnxruntime.get_available_providers()]
    return onnxruntime.InferenceSession(path, providers=providers)


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Modules of `folder` can be imported inside, and are forgotten afterwards: the next repository has its own."""
    names = {path.stem for path in folder.glob("*.py")}
    before = {name: sys.modules.pop(name) for name in names & set(sys.modules)}
    silent, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.dont_write_bytecode = silent
        sys.path.remove(str(folder))
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(before)
