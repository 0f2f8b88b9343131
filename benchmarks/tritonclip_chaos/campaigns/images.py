"""Mutated image files, each alone and between two good ones, beside ordinary callers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from tritonclip_chaos.calls import SAME_COSINE
from tritonclip_chaos.campaign import Campaign, Context
from tritonclip_chaos.campaigns._hostile import (
    Target,
    embed_request,
    embeddings,
    hostile,
    judged,
    neighbors,
    not_unit,
    send,
    target,
)
from tritonclip_chaos.hostile.images import formats, mutants
from tritonclip_chaos.records import Record, Sample

EACH, EACH_SHORT = 500, 20


def run(context: Context) -> Iterator[Record]:
    """A record a format, and one for the ordinary callers."""
    with target(context) as server, neighbors(context, server, "images") as beside:
        for name in formats():
            context.say(f"images: {name}")
            record = Record("images", f"mutated {name}", context.seed)
            made = mutants(name, context.seed, context.pick(EACH, EACH_SHORT))
            hostile(context, server, record, (partial(_alone_and_between, server, mutant) for mutant in made))
            yield judged(record)
    yield beside


def _alone_and_between(server: Target, mutant: bytes) -> Sequence[Sample]:
    alone = send(server.stub, "alone", embed_request("embed_image", "image", [mutant]), not_unit)
    good = server.material.images[:2]
    request = embed_request("embed_image", "image", [good[0], mutant, good[1]])
    between = send(server.stub, "between", request, _rows_are(server))
    return [alone, _consistent(alone, between)]


def _rows_are(server: Target) -> Callable[[Any], str]:
    def check(response: Any) -> str:
        rows = embeddings(response)[[0, 2]]
        cosine = float((rows * server.material.image_features[:2]).sum(axis=1).min())
        return "" if cosine >= SAME_COSINE else f"a good image beside a mutant: cosine {cosine:.6f}"

    return check


def _consistent(alone: Sample, between: Sample) -> Sample:
    """`between`, wrong where a mutant got another verdict among good images, or another image was blamed."""
    problem = ""
    if {alone.outcome, between.outcome} == {"answered", "refused"}:
        problem = f"alone {alone.outcome}, between good images {between.outcome}: {alone.detail}{between.detail}"
    elif between.outcome == "refused" and "INVALID_ARGUMENT" in between.detail and "image[1]" not in between.detail:
        problem = f"another image is blamed: {between.detail}"
    overloaded = any("overloaded" in sample.detail for sample in (alone, between))
    if not problem or overloaded:
        return between
    return Sample(between.kind, between.begin_s, between.end_s, "wrong", problem)


CAMPAIGN = Campaign(
    "images",
    "mutated files of every image format, alone and between good ones",
    run,
    own_server=False,
    about="Files are cut at the boundaries of their format; parts are changed, repeated, swapped, removed, cut short, "
    "and checksums made right again in most. Four senders, and ordinary callers beside them.",
)
