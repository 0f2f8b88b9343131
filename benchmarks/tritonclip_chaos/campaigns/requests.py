"""Malformed KServe requests to every model over gRPC, beside ordinary callers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from tritonclip_chaos.campaign import Campaign, Context
from tritonclip_chaos.campaigns._hostile import Target, hostile, judged, neighbors, send, target
from tritonclip_chaos.hostile.requests import malformed
from tritonclip_chaos.records import Record, Sample

EACH, EACH_SHORT = 200, 8


def run(context: Context) -> Iterator[Record]:
    """A record a model, and one for ordinary callers."""
    with target(context) as server, neighbors(context, server, "requests") as beside:
        for config in _configs(server):
            context.say(f"requests: {config.name}")
            record = Record("requests", f"malformed, to {config.name}", context.seed)
            made = malformed([config], context.seed, context.pick(EACH, EACH_SHORT))
            hostile(context, server, record, (partial(_send, server, faults, request) for faults, request in made))
            yield judged(record)
    yield beside


def _configs(server: Target) -> list[Any]:
    """The configs of all models that the server has; those that it does not tell are left out."""
    names = _names(server)
    ask = server.stub.ModelConfig
    return [ask(service_pb2.ModelConfigRequest(name=name), timeout=10).config for name in names]


def _names(server: Target) -> list[str]:
    known = ("embed_image", "embed_text", "clip")
    try:
        index = server.stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(ready=True), timeout=10)
        return sorted(model.name for model in index.models)
    except grpc.RpcError:
        # The repository's control is closed to callers: an ensemble's config names the models behind it.
        configs = [server.stub.ModelConfig(service_pb2.ModelConfigRequest(name=name), timeout=10) for name in known]
        steps = {step.model_name for answer in configs for step in answer.config.ensemble_scheduling.step}
        return sorted({*known, *steps, "split_text", "text_encoder"})


def _send(server: Target, faults: str, request: Any) -> Sequence[Sample]:
    """An answer is fine: not every fault makes a request wrong."""
    sample = send(server.stub, faults, request, lambda response: "")
    if sample.outcome in ("failed", "lost"):
        return [Sample(faults, sample.begin_s, sample.end_s, sample.outcome, f"{faults}: {sample.detail}")]
    return [sample]


CAMPAIGN = Campaign(
    "requests",
    "malformed KServe requests to every model over gRPC",
    run,
    own_server=False,
    about="One to three faults in each request: shapes, types, names, contents, counts, numbers out of range, NaN, "
    "`classification` of every output, parameters, shared memory, versions, ids.",
)
