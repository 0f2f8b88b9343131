"""Requests of every entry point that are cancelled, or whose deadline passes, at random moments, under callers."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Iterator
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from tritonclip_bench.server.endpoint import connect
from tritonclip_chaos.campaign import Campaign, Context
from tritonclip_chaos.campaigns._faults import SERVER_LIMIT_S, Stage
from tritonclip_chaos.campaigns._hostile import embed_request
from tritonclip_chaos.records import Record

ROUNDS, EACH, EACH_SHORT = 5, 200, 100
LONGEST_S, TIMEOUT_S = 0.02, 10.0
# After a deadly cancellation the process is gone within that time.
_DIES_S = 0.5
ENTRY_POINTS = ("embed_image", "embed_text", "clip", "split_text")
WAYS = {"cancelled": True, "past their deadline": False}


def run(context: Context) -> Iterator[Record]:
    """A record an entry point and a way to give up."""
    with Stage(context, "cancels", "--restart-limit", "1000") as stage:
        for model in ENTRY_POINTS:
            for way, cancels in WAYS.items():
                record = stage.case(f"{model}, {way}")
                chance = context.draw(f"cancels {model} {way}")
                for _ in range(context.pick(ROUNDS, 1)):
                    if context.left_s > 0:
                        _round(stage, record, model, chance, cancels=cancels)
                yield stage.judged(record, SERVER_LIMIT_S)
        yield stage.closed()


def _round(stage: Stage, record: Record, model: str, chance: random.Random, *, cancels: bool) -> None:
    """Give up many requests; a tritonserver that they end is a fault, from which callers must recover."""
    before = stage.pid_of("tritonserver")

    def act() -> None:
        channel, stub = connect(stage.server.address)
        with channel:
            for _ in range(stage.context.pick(EACH, EACH_SHORT)):
                code = _give_up(stub, _request(stage, model, chance), chance.uniform(0, LONGEST_S), cancels=cancels)
                record.count("given up")
                record.count("answered before", code is grpc.StatusCode.OK)
                if stage.pid_of("tritonserver") != before:
                    return
        time.sleep(_DIES_S)

    stage.fault(record, act)
    record.count("ended tritonserver", stage.pid_of("tritonserver") != before)


def _give_up(stub: Any, request: service_pb2.ModelInferRequest, after_s: float, *, cancels: bool) -> grpc.StatusCode:
    call = stub.ModelInfer.future(request, timeout=TIMEOUT_S if cancels else max(after_s, 1e-4))
    if cancels:
        time.sleep(after_s)
        call.cancel()
    code: grpc.StatusCode = call.code()
    return code


def _request(stage: Stage, model: str, chance: random.Random) -> service_pb2.ModelInferRequest:
    """One with new texts, which are in no cache."""
    material = stage.context.material(stage.server.address)
    text = f"a dog of the number {chance.random()}. ".encode()
    if model == "split_text":
        request = service_pb2.ModelInferRequest(model_name=model)
        request.inputs.add(name="texts", datatype="BYTES", shape=(1,))
        request.raw_input_contents.append(struct.pack("<I", 100 * len(text)) + 100 * text)
        return request
    if model == "embed_text":
        return embed_request(model, "text", [text] * 8)
    request = embed_request(model, "image", [chance.choice(material.images)] * 2)
    if model == "clip":
        request.MergeFrom(embed_request(model, "text", [text]))
    return request


CAMPAIGN = Campaign(
    "cancels",
    "requests that are cancelled, or whose deadline passes, at random moments, under callers",
    run,
    about="A cancellation in the moment of the answer can end tritonserver 2.51: a known race of its gRPC frontend "
    "(server#7368, server#8034), mended in later releases. Such ends are counted; what is held against a target is "
    "that callers lose nothing and the server is back.",
)
