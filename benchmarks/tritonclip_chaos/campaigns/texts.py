"""Texts that cost more than they look, to `embed_text` and `split_text`, beside ordinary callers."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from tritonclient.grpc import service_pb2

from tritonclip_chaos.campaign import Campaign, Context
from tritonclip_chaos.campaigns._hostile import (
    Target,
    embed_request,
    hostile,
    judged,
    neighbors,
    not_unit,
    send,
    target,
)
from tritonclip_chaos.hostile.texts import BROKEN, FAMILIES, hostile_texts
from tritonclip_chaos.records import Record, Sample

COUNT, COUNT_SHORT = 2000, 60
LARGEST = 65_536


def run(context: Context) -> Iterator[Record]:
    """Random sizes, then the largest of every family, then what is no text; and one record for ordinary callers."""
    largest = [(name, grow(LARGEST, context.draw(name)).encode()[:LARGEST]) for name, grow in FAMILIES.items()]
    cases = {
        "hostile texts of all sizes": hostile_texts(context.seed, context.pick(COUNT, COUNT_SHORT)),
        "the longest text of every family": iter(largest),
        "bytes that are no text, or too many": iter(BROKEN.items()),
    }
    with target(context) as server, neighbors(context, server, "texts") as beside:
        for name, texts in cases.items():
            context.say(f"texts: {name}")
            record = Record("texts", name, context.seed)
            hostile(context, server, record, (partial(_embed_and_split, server, text) for _, text in texts))
            yield judged(record)
    yield beside


def _embed_and_split(server: Target, text: bytes) -> Sequence[Sample]:
    split = service_pb2.ModelInferRequest(model_name="split_text")
    split.inputs.add(name="texts", datatype="BYTES", shape=(1,))
    split.raw_input_contents.append(struct.pack("<I", len(text)) + text)
    return [
        send(server.stub, "embed", embed_request("embed_text", "text", [text]), not_unit),
        send(server.stub, "split", split, _no_check),
    ]


def _no_check(response: Any) -> str:
    return "" if response.outputs else "an answer without outputs"


CAMPAIGN = Campaign(
    "texts",
    "texts that cost more than they look: runs of marks, entities, combining characters",
    run,
    own_server=False,
    about="Each text goes to `embed_text` and to `split_text`. Four senders, and ordinary callers beside them.",
)
