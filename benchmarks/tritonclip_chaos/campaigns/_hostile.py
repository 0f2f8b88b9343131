"""What campaigns of hostile input have in common: send, look what came back, and watch the neighbors meanwhile."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2

from tritonclip_bench.server.endpoint import connect
from tritonclip_chaos.callers import OVERLOADED
from tritonclip_chaos.campaign import Context
from tritonclip_chaos.campaigns.overload import enter
from tritonclip_chaos.material import Material
from tritonclip_chaos.records import Outcome, Record, Sample
from tritonclip_chaos.served.watch import Watch

SENDERS = 4
DEADLINE_S = 15.0
# An item may cost two seconds of CPU; on a machine that is busy otherwise they take longer.
SLOWEST_S = 8.0
# Statuses with which a server refuses what is wrong with a request.
REFUSALS = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED}
_UNIT_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Target:
    """A server under hostile traffic.

    Attributes:
        address: of gRPC.
        stub: KServe's service at that address.
        material: what ordinary callers ask, and the answers.
        watch: on its processes, where it is ours.
    """

    address: str
    stub: Any
    material: Material
    watch: Watch


@contextmanager
def target(context: Context) -> Iterator[Target]:
    """The server at the context's address, or one of our own; references are taken before anything hostile is sent."""
    with ExitStack() as stack:
        under = enter(stack, context)
        material = context.material(under.address)
        channel, stub = connect(under.address)
        stack.enter_context(channel)
        yield Target(under.address, stub, material, stack.enter_context(Watch(under.pid)))


def send(stub: Any, kind: str, request: service_pb2.ModelInferRequest, check: Callable[[Any], str]) -> Sample:
    """Send one request and judge the answer.

    Args:
        check: says what is wrong with an answer; empty where nothing is.
    """
    begin_s = time.monotonic()
    outcome: Outcome = "answered"
    detail = ""
    try:
        response = stub.ModelInfer(request, timeout=DEADLINE_S)
    except grpc.RpcError as error:
        outcome, detail = judge(error)
    else:
        if detail := check(response):
            outcome = "wrong"
    return Sample(kind, begin_s, time.monotonic(), outcome, detail)


def judge(error: Any) -> tuple[Outcome, str]:
    """What an error means for whoever sent something hostile, and its text."""
    code, detail = error.code(), f"{error.code().name}: {error.details()}"
    if code in REFUSALS or (code is grpc.StatusCode.UNAVAILABLE and OVERLOADED in detail):
        return "refused", detail
    return ("lost" if code is grpc.StatusCode.DEADLINE_EXCEEDED else "failed"), detail


def hostile(context: Context, target: Target, record: Record, sends: Iterable[Callable[[], Sequence[Sample]]]) -> None:
    """Run `sends` on a few threads, as many as the campaign's time allows, and count what came of them."""
    with ThreadPoolExecutor(SENDERS) as pool:
        for samples in pool.map(lambda one: one() if context.left_s > 0 else (), sends):
            record.add(samples)
    record.worst_mb = max(record.worst_mb, target.watch.take_worst_mb())


def judged(record: Record, slowest_s: float = SLOWEST_S) -> Record:
    """The record, held against what hostile input may do."""
    record.check("wrong answers", record.wrong, 0)
    record.check("calls failed or lost", record.failed + record.lost, 0)
    record.check("slowest call", record.worst_s, slowest_s, unit="s")
    return record


@contextmanager
def neighbors(context: Context, target: Target, campaign: str) -> Iterator[Record]:
    """Ordinary callers beside the hostile ones; the record is complete when the block ends."""
    record = Record(campaign, "ordinary callers beside them", context.seed)
    with context.calling(target.address) as callers:
        yield record
    record.add(callers.samples())
    record.check("wrong answers", record.wrong, 0)
    record.check("calls failed or lost", record.failed + record.lost, 0)


def embed_request(model: str, tensor: str, items: Sequence[bytes]) -> service_pb2.ModelInferRequest:
    """A request of a BYTES tensor [N, 1]."""
    request = service_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name=tensor, datatype="BYTES", shape=(len(items), 1))
    request.raw_input_contents.append(b"".join(struct.pack("<I", len(item)) + item for item in items))
    return request


def embeddings(response: Any) -> npt.NDArray[np.float32]:
    """The output `embedding` of an answer, float32 [N, D]."""
    index = next(place for place, output in enumerate(response.outputs) if output.name == "embedding")
    values = np.frombuffer(response.raw_output_contents[index], np.float32)
    return values.reshape([int(size) for size in response.outputs[index].shape])


def not_unit(response: Any) -> str:
    """What is wrong with embeddings that should be finite and of unit length; empty: nothing."""
    lengths = np.linalg.norm(embeddings(response), axis=1)
    if lengths.size and not (np.abs(lengths - 1) <= _UNIT_TOLERANCE).all():
        return f"an embedding of length {lengths.min():g} to {lengths.max():g}"
    return ""
