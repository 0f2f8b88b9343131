"""Does everything that serves answer? Small known questions to each entry point, side by side."""

from __future__ import annotations

import secrets
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from . import wire
from .causes import Cause
from .errors import ClipError, InvalidInputError, ProtocolError, unavailable
from .items import Chunk, Item
from .options import Options
from .session import IMAGE, SPLIT, TEXT, CallSession
from .spec import ServingSpec
from .steps import CallFlow, Flow, Gather

# A question refused by what others do says nothing of the models; whatever else fails is told at once.
WAITED_FOR: Final = frozenset({Cause.OVERLOADED, Cause.NEIGHBOUR})

ENTRY_POINTS: Final = (IMAGE.model, TEXT.model, "clip", SPLIT)
CLASSIFIERS = "classify_"

# PNG, 8 x 8 RGB: red grows to the right, green downwards.
KNOWN_IMAGE = b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAGUlEQVR42mNkYPivwnAHE7EwqDBgBYNTAgBChQkZuqvnfQAAAABJRU5ErkJggg=="
)

# float16 towers normalise in float32, so that only rounding is left.
_NORM_TOLERANCE = 1e-3

# The unit vectors that each entry point answers with, to an image, a text or both.
_VECTORS: Final[dict[str, tuple[str, ...]]] = {
    IMAGE.model: ("embedding",),
    TEXT.model: ("embedding",),
    "clip": wire.FEATURES,
}


@dataclass(frozen=True)
class Health:
    """What came of asking.

    Attributes:
        entry_points: the models that were asked.
        errors: for each that did not answer as it should, why; an overloaded one is there with `Cause.OVERLOADED`.
        spec: the serving spec, where one that carries it was ready.
    """

    entry_points: tuple[str, ...]
    errors: dict[str, ClipError]
    spec: ServingSpec | None


def check(session: CallSession, options: Options, names: Sequence[str] | None, deep: bool) -> Flow[Health]:
    """Ask `names`, or every entry point that is known; raises only what concerns the server as a whole."""
    if not (yield from session.rpc("is_server_live", {})):
        raise unavailable(options.address, "the server says that it is not live")
    asked = tuple(names) if names is not None else (yield from _known(session))
    errors: dict[str, ClipError] = {}
    specs: dict[str, ServingSpec] = {}
    for name in asked:
        error = yield from _caught(_describe(session, options.address, name, specs))
        if error:
            errors[name] = error
    ready = [name for name in asked if name not in errors]
    if deep and ready:
        probes = (_caught(_probe(session, name, specs.get(name))) for name in ready)
        told = yield Gather(probes, len(ready))
        errors |= {name: error for name, error in zip(ready, told, strict=True) if error}
    return Health(asked, {name: errors[name] for name in asked if name in errors}, next(iter(specs.values()), None))


def _known(session: CallSession) -> CallFlow[tuple[str, ...]]:
    try:
        index = yield from session.rpc("get_model_repository_index", {})
    except ClipError:
        # Most servers keep their index to themselves; whether they answer at all, the next question finds out.
        return ENTRY_POINTS
    found = {model.name for model in index.models if model.name.startswith(CLASSIFIERS)}
    return (*ENTRY_POINTS, *sorted(found))


def _caught(flow: CallFlow[None]) -> CallFlow[ClipError | None]:
    try:
        yield from flow
    except InvalidInputError as error:
        # Whoever asks about health has given no input that could be wrong.
        return ProtocolError(
            f"the server refuses a known image or text ({error}); run `tritonclip check` on its repository"
        )
    except ClipError as error:
        return error
    return None


def _describe(session: CallSession, address: str, name: str, specs: dict[str, ServingSpec]) -> CallFlow[None]:
    ready = yield from session.rpc("is_model_ready", {"model_name": name})
    # Of a model that is not there at all, this says so.
    config = yield from session.rpc("get_model_config", {"model_name": name})
    if not ready:
        raise unavailable(address, f"the model {name!r} is not ready", Cause.REVIVING)
    if name in _VECTORS:
        specs[name] = wire.serving_spec(config, name)


def _probe(session: CallSession, name: str, spec: ServingSpec | None) -> CallFlow[None]:
    image = Item(0, KNOWN_IMAGE)
    # Never the same twice: the server would answer from its cache, whatever became of the text tower.
    text = Item(0, f"photo {secrets.randbits(32)}".encode())
    if name == SPLIT:
        yield from session.split_chunk(Chunk((text,)))
        return
    items = {IMAGE.model: {"image": image}, TEXT.model: {"text": text}, "clip": {"image": image, "text": text}}
    inputs = {tensor: wire.bytes_tensor([item]) for tensor, item in items.get(name, {"image": image}).items()}
    outputs = _VECTORS.get(name, ("probabilities",))
    answer = yield from session.rpc("infer", wire.infer_arguments(name, inputs, outputs))
    for output in outputs:
        _check_row(name, output, wire.output(answer, output), spec)


def _check_row(name: str, output: str, row: Any, spec: ServingSpec | None) -> None:
    """One row of finite numbers; where a spec says how many, a unit vector of so many."""
    width = spec.embedding_dim if spec else row.shape[-1]
    length = float(np.linalg.norm(row)) if row.shape == (1, width) else float("nan")
    fits = abs(length - 1.0) <= _NORM_TOLERANCE if spec else bool(np.isfinite(length))
    if not fits:
        wanted = f"unit vector of {width} numbers" if spec else "row of finite numbers"
        raise ProtocolError(
            f"the server answers, but {output} of {name} for a known image or text is no {wanted} "
            f"(shape {list(row.shape)}, length {length:g}); run `tritonclip check` on its repository, and restart it"
        )
