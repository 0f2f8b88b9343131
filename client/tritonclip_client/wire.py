"""Tensors to arguments of tritonclient, and its answers back to arrays. No network here."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from .errors import InvalidInputError, ProtocolError
from .items import Item
from .results import Floats, Similarity
from .spec import ServingSpec

SCORES = ("logits", "probabilities")
FEATURES = ("image_features", "text_features")
TRUNCATED = "truncated"
PIECES = ("chunks", "lengths", "owner")
CLASSES = ("class_indices", "probabilities", "logits")


def infer_arguments(model: str, inputs: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str]) -> dict[str, Any]:
    """Keyword arguments of `InferenceServerClient.infer`.

    Args:
        inputs: tensor name to array; BYTES tensors are object arrays of bytes.
        outputs: names of the tensors to answer with.
    """
    return {
        "model_name": model,
        "inputs": [_input(name, array) for name, array in inputs.items()],
        "outputs": [InferRequestedOutput(name) for name in outputs],
    }


def size(arguments: Mapping[str, Any]) -> int:
    """How many values a request's tensors hold; 0 for one without tensors."""
    return sum(math.prod(tensor.shape()) for tensor in arguments.get("inputs", ()))


def bytes_tensor(items: Sequence[Item]) -> npt.NDArray[np.object_]:
    """BYTES [N, 1], one row an item."""
    tensor = np.empty((len(items), 1), dtype=np.object_)
    tensor[:, 0] = [item.data for item in items]
    return tensor


def output(answer: Any, name: str) -> npt.NDArray[Any]:
    """One tensor of tritonclient's `InferResult`; it shares the answer's memory and is read-only."""
    try:
        array = answer.as_numpy(name)
    except (ValueError, TypeError, struct.error) as error:
        raise ProtocolError(f"the server's tensor {name!r} does not fit its own shape ({error})") from error
    if not isinstance(array, np.ndarray):
        raise ProtocolError(f"the server's answer has no tensor {name!r}; {_REMEDY}")
    return array


def floats(answer: Any, name: str, rows: int, columns: int) -> Floats:
    """One tensor that must be float32 [rows, columns]."""
    array = output(answer, name)
    if array.dtype != np.float32 or array.shape != (rows, columns):
        raise ProtocolError(
            f"the server's tensor {name!r} is {array.dtype} {list(array.shape)}, not float32 {[rows, columns]}; "
            f"{_REMEDY}"
        )
    return array


def count_truncated(answer: Any, rows: int) -> int:
    """How many of `rows` texts the server says it cut."""
    array = output(answer, TRUNCATED)
    if array.dtype != np.bool_ or array.shape != (rows, 1):
        raise ProtocolError(
            f"the server's tensor {TRUNCATED!r} is {array.dtype} {list(array.shape)}, not bool {[rows, 1]}; {_REMEDY}"
        )
    return int(array.sum())


def integers(answer: Any, name: str, rows: int | None = None) -> npt.NDArray[np.int32]:
    """One tensor that must be int32, [K], or [rows, K] where `rows` is given."""
    array = output(answer, name)
    shape = [*([] if rows is None else [rows]), array.shape[-1] if array.ndim else 0]
    if array.dtype != np.int32 or list(array.shape) != shape:
        raise ProtocolError(
            f"the server's tensor {name!r} is {array.dtype} {list(array.shape)}, not int32 {shape}; {_REMEDY}"
        )
    return array


def pieces(answer: Any, items: Sequence[Item]) -> list[Item]:
    """The answer of `split_text` for some texts: every piece with its text's index and name."""
    content, lengths, owners = output(answer, PIECES[0]), integers(answer, PIECES[1]), integers(answer, PIECES[2])
    every = np.array_equal(np.unique(owners), np.arange(len(items)))
    if lengths.shape != owners.shape or not every or (np.diff(owners) < 0).any():
        raise ProtocolError(f"the server's pieces of {len(items)} texts do not belong to them; {_REMEDY}")
    ends = np.cumsum(lengths, dtype=np.int64)
    if content.dtype != np.uint8 or content.ndim != 1 or (lengths < 0).any() or ends[-1] != len(content):
        raise ProtocolError(
            f"the server's pieces are {content.dtype} {list(content.shape)}, not the uint8 [{ends[-1]}] that their "
            f"lengths add up to; {_REMEDY}"
        )
    data = content.tobytes()
    rows = zip(owners.tolist(), (ends - lengths).tolist(), ends.tolist(), strict=True)
    return [Item(items[owner].index, data[start:end], items[owner].source) for owner, start, end in rows]


def version(answer: Any) -> str:
    """The version of the model that answered."""
    return str(answer.get_response().model_version)


def parameter(answer: Any, model: str, name: str) -> str:
    """A parameter of a model's config."""
    if name not in answer.config.parameters:
        raise ProtocolError(f"the model {model!r} has no parameter {name!r}, it is of an older version; make it again")
    return str(answer.config.parameters[name].string_value)


def similarity(answer: Any, images: int, texts: int, width: int) -> Similarity:
    """The answer of the `clip` model for `images` x `texts`, embeddings of `width` values."""
    logits, probabilities = (floats(answer, name, images, texts).copy() for name in SCORES)
    return Similarity(
        logits=logits,
        probabilities=probabilities,
        image_features=floats(answer, FEATURES[0], images, width).copy(),
        text_features=floats(answer, FEATURES[1], texts, width).copy(),
    )


def batch_limit(answer: Any, model: str) -> int:
    """The most items that one request to a model may hold, from its config."""
    limit = int(answer.config.max_batch_size)
    if limit < 1:
        raise ProtocolError(f"the model {model!r} has max_batch_size {limit}, not 1 or more; {_REMEDY}")
    return limit


def require_output(answer: Any, model: str, name: str) -> None:
    """Raise `ProtocolError` unless a model's config has the output."""
    if name not in [tensor.name for tensor in answer.config.output]:
        raise ProtocolError(f"the model {model!r} has no output {name!r}, it is of an older version; export it again")


def serving_spec(answer: Any, model: str) -> ServingSpec:
    """The serving spec that a model's config carries."""
    if "serving_spec" not in answer.config.parameters:
        raise ProtocolError(f"the model {model!r} carries no serving_spec; {_REMEDY}")
    return ServingSpec.from_json(answer.config.parameters["serving_spec"].string_value)


_REMEDY = "serve a repository that `tritonclip export` wrote"


def _input(name: str, array: npt.NDArray[Any]) -> Any:
    try:
        tensor = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        return tensor.set_data_from_numpy(array)
    except (InferenceServerException, TypeError) as error:
        raise InvalidInputError(
            f"input {name!r} ({array.dtype} {list(array.shape)}) cannot be sent: {error}"
        ) from error
