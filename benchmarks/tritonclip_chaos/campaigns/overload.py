"""More requests than the server can serve, arriving whether it answers or not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from tritonclip_bench.errors import BenchError
from tritonclip_bench.server.metrics import Metrics, change, fetch
from tritonclip_chaos.campaign import Campaign, Context
from tritonclip_chaos.flood.generate import ANSWERED, NICE, REFUSED
from tritonclip_chaos.flood.outcome import FlowPlan, Outcome, Source, flood
from tritonclip_chaos.flood.sources import KINDS
from tritonclip_chaos.material import Material
from tritonclip_chaos.records import Record
from tritonclip_chaos.served import tree
from tritonclip_chaos.served.watch import Watch
from tritonclip_client import ClipClient, ClipError

LEVELS, SHORT_LEVELS = (0.5, 1.0, 2.0, 5.0, 10.0), (1.0, 10.0)
SECONDS, SHORT_SECONDS = 30.0, 5.0
DEADLINE_S = 5.0
# In flight while the capacity is measured.
WIDTH, CAPACITY_S = 16, 6.0
GOODPUT, MEMORY, RECOVERY_S, REFUSED_S, LOST = 0.9, 1.3, 3.0, 0.05, 0.01
# A generator that is later than so does not do what it says.
LATE_S = 0.5
# Rows that may be computed for nobody: what was in the encoder and before it when its caller gave up.
RUNNING_ROWS = 64
PROBES, PROBE_EVERY_S, PATIENCE_S = 15, 0.1, 40.0
# Normal again: three answers in a row that take no more than before, as the slowest but one did, and some jitter.
IN_A_ROW, JITTER_S = 3, 0.05


@dataclass(frozen=True)
class Under:
    """The server that is flooded: of our own, or somebody's."""

    address: str
    pid: int | None
    metrics: str


def run(context: Context) -> Iterator[Record]:
    """Each kind of request at each multiple of what the server can do."""
    with ExitStack() as stack:
        under = enter(stack, context)
        material = context.material(under.address)
        kinds = list(KINDS)[:1] if context.short else list(KINDS)
        for kind in kinds:
            maker, encoder = KINDS[kind]
            source = maker(under.address, material, context.folder, DEADLINE_S, context.seed)
            yield from _levels(context, under, kind, source, encoder)


def enter(stack: ExitStack, context: Context) -> Under:
    """The running server, or one of our own that ends with the stack."""
    if context.address is not None:
        return Under(context.address, None, "")
    server = stack.enter_context(context.serve())
    return Under(server.address, server.pid, server.metrics)


def capacity(context: Context, under: Under, source: Source) -> float:
    """Requests a second that the server answers in a closed loop; it is warm afterwards."""
    closed = [FlowPlan(source, "capacity", width=WIDTH)]
    flood(under.address, closed, 2.0, 6 * DEADLINE_S, context.seed)
    outcome = flood(under.address, closed, context.pick(CAPACITY_S, 3.0), 6 * DEADLINE_S, context.seed)
    return max(outcome.goodput, 0.1)


def _levels(context: Context, under: Under, kind: str, source: Source, encoder: str) -> Iterator[Record]:
    rate = capacity(context, under, source)
    records = []
    for level in context.pick(LEVELS, SHORT_LEVELS):
        if context.left_s <= 0:
            break
        context.say(f"overload: {kind}, {level:g} x {rate:.1f}/s")
        records.append(_level(context, under, f"{kind}, {level:g} x", source, encoder, level * rate))
    peak = max((record.figures["goodput/s"] for record in records), default=0.0)
    for record in records:
        record.figures["goodput / peak"] = record.figures["goodput/s"] / peak if peak else 0.0
    if records:
        records[-1].check("goodput over the peak", records[-1].figures["goodput / peak"], GOODPUT, at_least=True)
    yield from records


def _level(context: Context, under: Under, case: str, source: Source, encoder: str, rate: float) -> Record:
    record = Record("overload", case, context.seed)
    material = context.material(under.address)
    usual_s = probe_latency(under.address, material)
    idle_mb = tree.pss_mb(tree.descendants(under.pid)) if under.pid else 0.0
    before = _metrics(under)
    recovery = Recovery(under.address, material, usual_s)
    with Watch(under.pid) as watch:
        flows = [FlowPlan(source, "flood", rate)]
        seconds = context.pick(SECONDS, SHORT_SECONDS)
        outcome = flood(under.address, flows, seconds, DEADLINE_S, context.seed, recovery.wait)
    outcome.add_to(record)
    record.worst_mb = watch.worst_mb
    record.figures |= _figures(outcome)
    record.figures["recovery s"] = recovery.seconds
    if idle_mb:
        record.figures["memory / idle"] = max(watch.worst_mb, idle_mb) / idle_mb
        record.check("memory over idle", record.figures["memory / idle"], MEMORY, unit="x")
    if (computed := _computed(before, _metrics(under), encoder)) is not None:
        answered = outcome.count(ANSWERED) * source.items + recovery.images * (encoder == "image_encoder")
        record.figures["rows for nobody"] = max(0.0, computed - answered)
        record.check("rows computed for nobody", record.figures["rows for nobody"], RUNNING_ROWS)
    _checks(record, outcome)
    return record


def _figures(outcome: Outcome) -> dict[str, float]:
    return {
        "offered/s": len(outcome.rows) / outcome.seconds,
        "goodput/s": outcome.goodput,
        "accepted p50 s": outcome.seconds_of(ANSWERED, 0.5, from_due=True),
        "accepted p99 s": outcome.seconds_of(ANSWERED, 0.99, from_due=True),
        "refusal p50 ms": outcome.seconds_of(REFUSED, 0.5, from_due=False) * 1000,
        "generator late p99 ms": outcome.lag_p99_s * 1000,
        "generator's cores": outcome.generator_cores,
    }


def _checks(record: Record, outcome: Outcome) -> None:
    record.check("wrong answers", record.wrong, 0)
    record.check("failed otherwise", record.failed, 0)
    record.check("the generator late, p99", outcome.lag_p99_s, LATE_S, unit="s")
    record.check("lost, of all", record.lost / max(1, record.tried), LOST)
    record.check("accepted p99", record.figures["accepted p99 s"], DEADLINE_S, unit="s")
    if outcome.count(REFUSED):
        record.check("refusal p50", record.figures["refusal p50 ms"] / 1000, REFUSED_S, unit="s")
    record.check("normal again within", record.figures["recovery s"], RECOVERY_S, unit="s")


def _computed(before: Metrics | None, after: Metrics | None, encoder: str) -> float | None:
    """Rows that the encoder computed in between, by the server's own counters; None where it does not tell."""
    if before is None or after is None:
        return None
    counts = change(before, after, "nv_inference_count", "model")
    return sum(count for name, count in counts.items() if name.startswith(encoder))


def _metrics(under: Under) -> Metrics | None:
    try:
        return fetch(f"http://{under.metrics}/metrics") if under.metrics else None
    except BenchError:
        return None


def probe(address: str, material: Material) -> float:
    """Seconds that an image and then a text take; infinite where one is not answered."""
    begin_s = time.monotonic()
    try:
        with ClipClient(address, timeout_s=DEADLINE_S, retry=False) as client:
            client.embed_images([material.images[0]])
            client.embed_texts([material.texts[0]])
    except ClipError:
        return float("inf")
    return time.monotonic() - begin_s


def probe_latency(address: str, material: Material) -> float:
    """Seconds that an image and a text take at rest: the slowest but one of some."""
    return sorted(probe(address, material) for _ in range(PROBES))[-2]


@dataclass
class Recovery:
    """Looks, from when `wait` is called, how long it takes until answers take no longer than usual.

    Attributes:
        seconds: that it took.
        images: that were embedded meanwhile.
    """

    address: str
    material: Material
    usual_s: float
    seconds: float = PATIENCE_S
    images: int = 0

    def wait(self) -> None:
        """Ask until it is as usual, several times in a row."""
        begin_s, good = time.monotonic(), 0
        while good < IN_A_ROW and time.monotonic() - begin_s < PATIENCE_S:
            asked_s = time.monotonic()
            took_s = probe(self.address, self.material)
            self.images += took_s < float("inf")
            if took_s > self.usual_s + JITTER_S:
                good = 0
                time.sleep(PROBE_EVERY_S)
                continue
            self.seconds = asked_s - begin_s if good == 0 else self.seconds
            good += 1
        if good < IN_A_ROW:
            self.seconds = PATIENCE_S


CAMPAIGN = Campaign(
    "overload",
    "an open loop of 0.5 to 10 times what the server can do",
    run,
    own_server=False,
    about=f"Requests arrive as a Poisson process for {SECONDS:g} s, each with a deadline of {DEADLINE_S:g} s, at "
    f"multiples of what a closed loop of {WIDTH} reached just before. The generator is a process of its "
    f"own on the same cores, niced by {NICE} so that it takes none from the server; accepted requests "
    "count from when they were due, refusals from when they were sent. *Recovery*: from the last request "
    "until an image and a text take as long as before the flood. *Rows for nobody*: by the server's own "
    "counters, computed by the encoder but never answered. *Generator's cores*: those that it took; on a machine "
    "with two, the server lacked them. Goodput also pays for receiving what is refused.",
)
