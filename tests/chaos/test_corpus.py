"""What broke a server once, sent to a real one: each has its documented outcome, and the next caller its answer."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import service_pb2

import bombs
from tritonclip_bench.server.endpoint import connect
from tritonclip_chaos.campaigns._hostile import embed_request, embeddings
from tritonclip_serve import TritonServer

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CORPUS = Path(__file__).parent / "corpus"
ENTRIES = tomllib.loads((CORPUS / "corpus.toml").read_text(encoding="utf-8"))["entry"]
# Generously, for a busy machine: before, it was minutes, or the end of the server.
WITHIN_S = 30.0


def request_of(entry: dict[str, Any]) -> service_pb2.ModelInferRequest:
    if "file" in entry:
        content = (CORPUS / entry["file"]).read_text(encoding="utf-8")
        return text_format.Parse(content, service_pb2.ModelInferRequest())
    if "bomb" in entry:
        return embed_request("embed_image", "image", [bombs.BOMBS[entry["bomb"]]()])
    if "rows" in entry:
        request = service_pb2.ModelInferRequest(model_name="similarity")
        for name in ("image_embedding", "text_embedding"):
            request.inputs.add(name=name, datatype="FP32", shape=(entry["rows"], 64))
            request.raw_input_contents.append(np.full((entry["rows"], 64), 0.125, np.float32).tobytes())
        return request
    text = entry["text"].encode()
    request = embed_request(entry["model"], "text", [(text * (entry["bytes"] // len(text) + 1))[: entry["bytes"]]])
    if entry["model"] == "split_text":
        request.inputs[0].name, request.inputs[0].shape[:] = "texts", [1]
    return request


@pytest.fixture
def stub(server: TritonServer) -> Iterator[Any]:
    channel, made = connect(server.grpc_address)
    with channel:
        yield made


@pytest.fixture(scope="module")
def ordinary(server: TritonServer) -> np.ndarray:
    """The embedding of an ordinary text, before."""
    channel, made = connect(server.grpc_address)
    with channel:
        return embeddings(made.ModelInfer(embed_request("embed_text", "text", [b"a dog"]), timeout=WITHIN_S))


@pytest.mark.parametrize(
    "entry", ENTRIES, ids=lambda entry: entry.get("file") or entry.get("bomb") or entry.get("text") or "rows"
)
def test_what_broke_a_server(server: TritonServer, stub, ordinary, entry: dict[str, Any]) -> None:
    request = request_of(entry)
    begun_s = time.monotonic()
    try:
        stub.ModelInfer(request, timeout=WITHIN_S)
        status, message = "OK", ""
    except grpc.RpcError as error:
        status, message = error.code().name, error.details()
    told = (status, message, time.monotonic() - begun_s)
    assert status == entry["expect"], told
    assert re.search(entry.get("message", ""), message), told
    after = stub.ModelInfer(embed_request("embed_text", "text", [b"a dog"]), timeout=WITHIN_S)
    assert np.array_equal(embeddings(after), ordinary)


def test_every_file_is_used() -> None:
    assert {entry["file"] for entry in ENTRIES if "file" in entry} == {path.name for path in CORPUS.glob("*.txtpb")}
