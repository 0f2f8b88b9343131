"""Checks every answer of a load test, so that a failing server cannot look fast."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from tritonclip_bench.errors import WrongAnswerError

Floats = NDArray[np.float32]

# float32 rounding of a norm over a thousand values is far below; a missing normalisation far above.
NORM_TOLERANCE = 1e-3
# Outputs that are of other types, and checked elsewhere or of no interest.
NO_FLOATS = frozenset({"truncated", "class_indices"})


def floats(response: service_pb2.ModelInferResponse) -> dict[str, Floats]:
    """The outputs of floats, by name.

    Raises:
        WrongAnswerError: one is not FP32, or its content has another size than its shape says.
    """
    outputs = {}
    try:
        for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True):
            if tensor.name in NO_FLOATS:
                continue
            if tensor.datatype != "FP32":
                raise WrongAnswerError(f"{tensor.name} is {tensor.datatype}, not FP32")
            outputs[tensor.name] = np.frombuffer(raw, dtype="<f4").reshape(tuple(tensor.shape))
    except ValueError as error:
        raise WrongAnswerError(f"the tensors do not have their shapes: {error}") from None
    return outputs


def check_embeddings(outputs: dict[str, Floats], name: str, shape: tuple[int, ...]) -> None:
    """Raise WrongAnswerError unless the output `name` has `shape`, [N, D], and its rows are of length 1."""
    vectors = _shaped(outputs, name, shape)
    # One pass over the values, and no value that is not finite compares as small: only what looks wrong is looked at.
    squares = np.einsum("ij,ij->i", vectors, vectors)
    if squares.max() <= 1 + NORM_TOLERANCE and squares.min() >= 1 - NORM_TOLERANCE:
        return
    _check_finite(vectors, name)
    if np.abs(np.linalg.norm(vectors, axis=1) - 1).max() > NORM_TOLERANCE:
        raise WrongAnswerError(f"{name} holds vectors that are not of length 1")


def check_probabilities(outputs: dict[str, Floats], shape: tuple[int, ...]) -> None:
    """Raise WrongAnswerError unless the probabilities have `shape` and lie between 0 and 1."""
    probabilities = _shaped(outputs, "probabilities", shape)
    if probabilities.min() >= 0 and probabilities.max() <= 1:
        return
    _check_finite(probabilities, "probabilities")
    raise WrongAnswerError("probabilities are outside 0 to 1")


def check_classes(response: service_pb2.ModelInferResponse, images: int) -> None:
    """Raise WrongAnswerError unless there are classes and probabilities [N, k], of k of at least 1, for N images."""
    shapes = {tensor.name: list(tensor.shape) for tensor in response.outputs}
    for name in ("class_indices", "probabilities"):
        if name not in shapes:
            raise WrongAnswerError(f"no {name} in the answer")
    classes = shapes["class_indices"]
    if classes != shapes["probabilities"] or classes[:1] != [images] or 0 in classes:
        raise WrongAnswerError(f"class_indices have the shape {classes} for {images} images")


def _shaped(outputs: dict[str, Floats], name: str, shape: tuple[int, ...]) -> Floats:
    if name not in outputs:
        raise WrongAnswerError(f"no {name} in the answer")
    if outputs[name].shape != shape:
        raise WrongAnswerError(f"{name} has the shape {list(outputs[name].shape)}, not {list(shape)}")
    return outputs[name]


def _check_finite(values: Floats, name: str) -> None:
    if not np.isfinite(values).all():
        raise WrongAnswerError(f"{name} holds values that are not finite")
