"""Callers of very different appetite on one full server: nobody's requests may push out another's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from tritonclip_bench.server.endpoint import describe
from tritonclip_chaos.campaign import Campaign, Context
from tritonclip_chaos.campaigns.overload import DEADLINE_S, Under, capacity, enter
from tritonclip_chaos.flood.generate import ANSWERED
from tritonclip_chaos.flood.outcome import FlowPlan, Outcome, Source, flood
from tritonclip_chaos.flood.sources import LARGE, MIDDLE, SMALL, images, texts
from tritonclip_chaos.records import Record

SECONDS, SHORT_SECONDS = 12.0, 5.0
# One caller asks for three times what the server can do, the other for a tenth of that: less than half of it.
GREEDY, MODEST = 3.0, 0.3
# Small requests come at this share of what the server can do without the large ones, of which so many are always there.
SMALL_LOAD, LARGE_WIDTH = 0.2, 4
SERVED, SMALL_P99_S = 0.9, 2.0
MOST_IN_A_BATCH = 64


def run(context: Context) -> Iterator[Record]:
    """Each pair of callers, one after the other."""
    with ExitStack() as stack:
        under = enter(stack, context)
        material = context.material(under.address)
        limits = describe(under.address).max_batch_size
        middle = images(under.address, context.folder, MIDDLE, DEADLINE_S, context.seed)
        yield _greedy(context, under, "JPEG of 0.8 megapixels", middle)
        few = texts(material, context.folder, DEADLINE_S, context.seed)
        yield _greedy(context, under, "texts", few)
        small = images(under.address, context.folder, SMALL, DEADLINE_S, context.seed)
        large = images(under.address, context.folder, LARGE, DEADLINE_S, context.seed)
        yield _beside(context, under, "256 x 256 beside 12 megapixels", small, large)
        batch = min(MOST_IN_A_BATCH, limits["embed_image"])
        many = images(under.address, context.folder, SMALL, DEADLINE_S, context.seed, batch)
        yield _beside(context, under, f"one image beside batches of {batch}", small, many)
        batch = min(MOST_IN_A_BATCH, limits["embed_text"])
        many = texts(material, context.folder, DEADLINE_S, context.seed, batch)
        single = texts(material, context.folder, DEADLINE_S, context.seed, 2)
        yield _beside(context, under, f"two texts beside batches of {batch}", single, many)


def _greedy(context: Context, under: Under, what: str, source: Source) -> Record:
    """The modest caller asks for less than half, and gets it."""
    record = _record(context, f"{what}: one caller with ten times the requests of another")
    rate = capacity(context, under, source)
    flows = [FlowPlan(source, "greedy", GREEDY * rate), FlowPlan(source, "modest", MODEST * rate)]
    outcome = _flood(context, under, record, flows)
    shares = [_share(outcome.flow(place)) for place in range(2)]
    record.figures |= {"answered of the greedy": shares[0], "answered of the modest": shares[1]}
    record.check("answered of the modest caller's", shares[1], SERVED, at_least=True)
    return record


def _beside(context: Context, under: Under, case: str, small: Source, large: Source) -> Record:
    """Small requests are answered soon, though some large ones are always there."""
    record = _record(context, case)
    rate = SMALL_LOAD * capacity(context, under, small)
    flows = [FlowPlan(small, "small", rate), FlowPlan(large, "large", width=LARGE_WIDTH)]
    outcome = _flood(context, under, record, flows)
    few = outcome.flow(0)
    p99_s = few.seconds_of(ANSWERED, 0.99, from_due=True)
    record.figures |= {
        "answered of the small": _share(few),
        "small p50 s": few.seconds_of(ANSWERED, 0.5, from_due=True),
        "small p99 s": p99_s,
        "large/s": outcome.flow(1).goodput,
    }
    record.check("answered of the small", _share(few), SERVED, at_least=True)
    record.check("p99 of the small", p99_s, SMALL_P99_S, unit="s")
    record.check("large answered a second", outcome.flow(1).goodput, 0.05, at_least=True)
    return record


def _record(context: Context, case: str) -> Record:
    context.say(f"fairness: {case}")
    return Record("fairness", case, context.seed)


def _flood(context: Context, under: Under, record: Record, flows: list[FlowPlan]) -> Outcome:
    seconds = context.pick(SECONDS, SHORT_SECONDS)
    outcome = flood(under.address, flows, seconds, DEADLINE_S, context.seed)
    outcome.add_to(record)
    record.check("wrong answers", record.wrong, 0)
    return outcome


def _share(outcome: Outcome) -> float:
    return outcome.count(ANSWERED) / max(1, len(outcome.rows))


CAMPAIGN = Campaign(
    "fairness",
    "a greedy caller beside a modest one, and large requests beside small ones",
    run,
    own_server=False,
    about=f"Open loops of {SECONDS:g} s. The greedy caller asks for {GREEDY:g} times what the server can do, the "
    f"modest one for {MODEST:g} times: less than half of it. Small requests come at {SMALL_LOAD:g} times "
    f"what the server can do, while {LARGE_WIDTH} large ones are always there.",
)
