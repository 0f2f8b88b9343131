"""What the HTTP servers are asked, and what they answer."""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tritonclip_bench.errors import WrongAnswerError

Floats = NDArray[np.float32]
JSON = "application/json"
# A boundary that no image holds but by an accident of one in 2^128.
BOUNDARY = b"b0f3a1de5c8e4f1795a2d3c46e7b8091"
# What infinity calls the model that it serves.
MODEL = "clip"


@dataclass(frozen=True)
class Request:
    """One POST."""

    path: str
    body: bytes
    content_type: str = JSON

    def SerializeToString(self) -> bytes:  # noqa: N802 - as a message of gRPC, for whoever counts what is sent
        """The body, which is ready."""
        return self.body


@dataclass(frozen=True)
class Api:
    """How a server takes images and texts."""

    images: Callable[[Sequence[bytes]], Request]
    texts: Callable[[Sequence[str]], Request]


def _fastapi_images(images: Sequence[bytes]) -> Request:
    head = b'\r\nContent-Disposition: form-data; name="files"; filename="image"\r\n\r\n'
    parts = [part for image in images for part in (b"--", BOUNDARY, head, image, b"\r\n")]
    body = b"".join([*parts, b"--", BOUNDARY, b"--\r\n"])
    return Request("/embed/images", body, f"multipart/form-data; boundary={BOUNDARY.decode()}")


def _fastapi_texts(texts: Sequence[str]) -> Request:
    return Request("/embed/texts", json.dumps({"texts": list(texts)}).encode())


def _infinity_images(images: Sequence[bytes]) -> Request:
    # By hand, because json would look through every byte for what to escape.
    inputs = b",".join(map(_data_uri, images))
    head = json.dumps({"model": MODEL, "modality": "image", "encoding_format": "base64"})
    return Request("/embeddings", head[:-1].encode() + b', "input": [' + inputs + b"]}")


def _infinity_texts(texts: Sequence[str]) -> Request:
    body = {"model": MODEL, "encoding_format": "base64", "input": list(texts)}
    return Request("/embeddings", json.dumps(body).encode())


@functools.lru_cache(maxsize=256)
def _data_uri(image: bytes) -> bytes:
    """An image as JSON's string of a data URI; made once, as a load generator must cost little."""
    return b'"data:image/jpeg;base64,' + base64.b64encode(image) + b'"'


APIS = {"fastapi": Api(_fastapi_images, _fastapi_texts), "infinity": Api(_infinity_images, _infinity_texts)}


def embeddings(answer: bytes) -> Floats:
    """The embeddings of an answer, [N, D].

    Raises:
        WrongAnswerError: it is no such answer.
    """
    try:
        rows = [base64.b64decode(one["embedding"], validate=True) for one in json.loads(answer)["data"]]
        return np.stack([np.frombuffer(row, dtype="<f4") for row in rows])
    except (KeyError, TypeError, ValueError) as error:
        raise WrongAnswerError(f"the answer is no JSON of embeddings in base64 ({error!r})") from None
