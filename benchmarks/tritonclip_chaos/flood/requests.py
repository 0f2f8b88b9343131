"""Requests, serialised once, and their files."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

from tritonclient.grpc import service_pb2

_LENGTH = struct.Struct("<I")


def embed_request(tower: str, items: Sequence[bytes], timeout_s: float) -> bytes:
    """A serialised request of `embed_image` or `embed_text`.

    Args:
        tower: "image" or "text", the tensor's name.
        items: encoded images, or texts in UTF-8.
        timeout_s: that the request says it has.
    """
    request = service_pb2.ModelInferRequest(model_name=f"embed_{tower}")
    request.parameters["timeout"].int64_param = int(timeout_s * 1e6)
    request.inputs.add(name=tower, datatype="BYTES", shape=(len(items), 1))
    request.outputs.add(name="embedding")
    request.raw_input_contents.append(b"".join(_LENGTH.pack(len(item)) + item for item in items))
    serialised: bytes = request.SerializeToString()
    return serialised


def write_requests(path: Path, requests: Iterable[bytes]) -> None:
    """Write them, each behind its length."""
    with path.open("wb") as file:
        for request in requests:
            file.write(_LENGTH.pack(len(request)))
            file.write(request)


def read_requests(path: Path) -> list[bytes]:
    """Read what `write_requests` wrote."""
    content, at, requests = path.read_bytes(), 0, []
    while at < len(content):
        (length,) = _LENGTH.unpack_from(content, at)
        at += _LENGTH.size
        requests.append(content[at : at + length])
        at += length
    return requests
