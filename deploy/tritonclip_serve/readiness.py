"""Asks a server for a real embedding: a server that answers 200 may still have a dead model behind it."""

from __future__ import annotations

import base64
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from tritonclip_serve.edge.access import Access
from tritonclip_serve.errors import NotReadyError

_LENGTH = struct.Struct("<I")
_SMALLEST_PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAABAAAAAQCAIAAACQkWg2AAAAGUlEQVR42mNsaGhgIAUwMZAIRjWMahg6GgDJTAGg54KQ4AAAAABJRU5ErkJggg=="
)
# The statuses of a server that is still on its way, after which asking again makes sense.
_STARTING = ("StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED")


@dataclass(frozen=True)
class Probe:
    """One item that an ensemble must embed: `payload` is the one element of its BYTES input [1, 1]."""

    model: str
    tensor: str
    payload: bytes


class StillStartingError(Exception):
    """The server does not answer yet."""


def read_probes(repository: Path) -> tuple[Probe, ...]:
    """The repository's own warm-up image and text, or a small gray image and a short text."""
    image = _first_element(repository / "preprocess" / "warmup" / "image") or _SMALLEST_PNG
    text = _first_element(repository / "tokenizer" / "warmup" / "text") or b"a photo"
    return Probe("embed_image", "image", image), Probe("embed_text", "text", text)


def ask(access: Access, address: str, probes: tuple[Probe, ...], timeout_s: float) -> None:
    """Have every probe embedded.

    Args:
        access: how to reach it.
        address: `host:port` of the gRPC endpoint.
        timeout_s: deadline of each request.

    Raises:
        StillStartingError: the server does not answer yet; ask again.
        NotReadyError: it answered with something that is no embedding.
    """
    client = access.client(address)
    try:
        for probe in probes:
            _check(probe, _embed(client, probe, timeout_s))
    finally:
        client.close()


def _embed(client: Any, probe: Probe, timeout_s: float) -> Any:
    tensor = triton.InferInput(probe.tensor, [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[probe.payload]], dtype=np.object_))
    try:
        result = client.infer(probe.model, [tensor], client_timeout=timeout_s)
    except InferenceServerException as error:
        if error.status() in _STARTING:
            raise StillStartingError(error.message()) from error
        raise NotReadyError(f"{probe.model} does not embed its warm-up item: {error.message()}") from error
    return result.as_numpy("embedding")


def _check(probe: Probe, embedding: Any) -> None:
    usable = embedding is not None and embedding.ndim == 2 and np.isfinite(embedding).all() and embedding.any()
    if not usable:
        shape = None if embedding is None else embedding.shape
        raise NotReadyError(
            f"{probe.model} answered its warm-up item with no embedding (shape {shape}, expected finite numbers [1, D])"
        )


def _first_element(path: Path) -> bytes | None:
    """The first element of a BYTES tensor as Triton serializes it: its length in 4 bytes, then the element."""
    content = path.read_bytes() if path.is_file() else b""
    if len(content) <= _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack_from(content)
    return content[_LENGTH.size : _LENGTH.size + length]
