"""Hostile requests to Triton's HTTP frontend, raw bytes on a socket: kinds that are known to end it, and others."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress

TIMEOUT_S = 10.0
_HALF_OPEN = 100
_CHUNKS = 700_000
_LEVELS = 200_000

Kind = Callable[[random.Random], list[bytes]]


def _post(path: str, body: bytes, *headers: str) -> list[bytes]:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Connection: close", f"Content-Length: {len(body)}", *headers]
    return ["\r\n".join([*lines, "", ""]).encode() + body]


def _infer(model: str, document: object) -> list[bytes]:
    return _post(f"/v2/models/{model}/infer", json.dumps(document).encode(), "Content-Type: application/json")


def _huge_shape(chance: random.Random) -> list[bytes]:
    shape = [1, chance.choice((2**63 - 1, 2**60))]
    tensor = {"name": "input_ids", "shape": shape, "datatype": "INT32", "data": [1]}
    return _infer("text_encoder", {"inputs": [tensor]})


def _deep_json(chance: random.Random) -> list[bytes]:
    depth = _LEVELS * chance.choice((1, 2, 5))
    return _post("/v2/models/embed_text/infer", b'{"inputs":' + b"[" * depth + b"]" * depth + b"}")


def _tiny_chunks(chance: random.Random) -> list[bytes]:
    lines = ("POST /v2/models/embed_text/infer HTTP/1.1", "Host: localhost", "Transfer-Encoding: chunked", "", "")
    return ["\r\n".join(lines).encode(), *[b"1\r\nx\r\n" * 10_000] * (_CHUNKS // 10_000), b"0\r\n\r\n"]


def _classification(chance: random.Random) -> list[bytes]:
    tensor = {"name": "texts", "shape": [1], "datatype": "BYTES", "data": ["A dog. A cat."]}
    names = ("chunks", "lengths", "owner")
    outputs = [{"name": name, "parameters": {"classification": chance.choice((1, 3))}} for name in names]
    return _infer("split_text", {"inputs": [tensor], "outputs": outputs})


def _malformed_json(chance: random.Random) -> list[bytes]:
    good = json.dumps({"inputs": [{"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": ["a cat"]}]}).encode()
    place = chance.randrange(len(good))
    broken = chance.choice(
        (good[:place], good[:place] + chance.randbytes(3) + good[place:], b"{}", b"[]", b"null", b"")
    )
    return _post("/v2/models/embed_text/infer", broken)


def _wrong_types(chance: random.Random) -> list[bytes]:
    """A document of the right keys whose values have other types."""
    value: object = chance.choice((None, -1, 1.5, "x", [], {}, [[[]]], True))
    tensor: dict[str, object] = {"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": ["a cat"]}
    tensor[chance.choice(("name", "shape", "datatype", "data"))] = value
    return _infer("embed_text", {"inputs": [tensor], "outputs": chance.choice((value, []))})


def _gzip_junk(chance: random.Random) -> list[bytes]:
    junk = b"\x1f\x8b\x08" + chance.randbytes(chance.choice((0, 1, 40, 4000)))
    return _post("/v2/models/embed_text/infer", junk, f"Content-Encoding: {chance.choice(('gzip', 'deflate'))}")


def _wrong_lengths(chance: random.Random) -> list[bytes]:
    """A header length of binary data that does not fit the body."""
    length = chance.choice(("-1", "0", "5", "99999999999999999999", "x"))
    return _post("/v2/models/embed_text/infer", b'{"inputs":[]}', f"Inference-Header-Content-Length: {length}")


def _lines(chance: random.Random) -> list[bytes]:
    return [
        chance.choice((b"\x00" * 100, b"GET / HTTP/9.9\r\n\r\n", b"X" * 100_000, chance.randbytes(500))) + b"\r\n\r\n"
    ]


# What a probe of the server found to end tritonserver 2.51, and what it answers or refuses.
DEADLY: dict[str, Kind] = {
    "INT32 of a huge shape": _huge_shape,
    "JSON nested deep": _deep_json,
    "700,000 chunks of a byte": _tiny_chunks,
}
HARMLESS: dict[str, Kind] = {
    "classification of every output": _classification,
    "malformed JSON": _malformed_json,
    "JSON of wrong types": _wrong_types,
    "junk called gzip": _gzip_junk,
    "wrong lengths": _wrong_lengths,
    "no HTTP": _lines,
}
KINDS = {**DEADLY, **HARMLESS}


def send(address: str, parts: list[bytes], timeout_s: float = TIMEOUT_S) -> int | None:
    """Send the bytes of one request; returns the status of the answer, None where there was none.

    Raises:
        OSError: nobody listens.
    """
    host, _, port = address.rpartition(":")
    with closing(socket.create_connection((host, int(port)), timeout_s)) as connection, suppress(OSError):
        for part in parts:
            connection.sendall(part)
        head = connection.recv(64).split(b" ", 2)
        if len(head) > 1 and head[1].isdigit():
            return int(head[1])
    return None


def embeds(address: str) -> bool:
    """Whether whoever listens there embeds a text over HTTP."""
    tensor = {"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": ["a cat"]}
    (request,) = _infer("embed_text", {"inputs": [tensor]})
    host, _, port = address.rpartition(":")
    answer = b""
    with suppress(OSError), closing(socket.create_connection((host, int(port)), TIMEOUT_S)) as connection:
        connection.sendall(request)
        while piece := connection.recv(1 << 16):
            answer += piece
    return b'"embedding"' in answer


@contextmanager
def half_open(address: str) -> Iterator[None]:
    """A hundred connections that begin a request and do not end it, for the length of a block."""
    host, _, port = address.rpartition(":")
    with ExitStack() as stack:
        for _ in range(_HALF_OPEN):
            connection = stack.enter_context(closing(socket.create_connection((host, int(port)), TIMEOUT_S)))
            connection.sendall(b"POST /v2/models/embed_text/infer HTTP/1.1\r\nContent-Length: 1000\r\n")
        yield
