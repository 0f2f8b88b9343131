"""SIGSTOP of every Python model's process and of tritonserver, under callers: they hang and do not die."""

from __future__ import annotations

import signal
from collections.abc import Iterator

from tritonclip_chaos.campaign import Campaign, Context
from tritonclip_chaos.campaigns._faults import MODEL_LIMIT_S, SERVER_LIMIT_S, Stage
from tritonclip_chaos.records import Record

PAUSES = 3
# A process that hangs has to be noticed first.
NOTICED_S = 2.0


def run(context: Context) -> Iterator[Record]:
    """Stop each process and never let it go on: whoever supervises has to end it."""
    with Stage(context, "pauses") as stage:
        names = [stub.instance for stub in stage.server.stubs()]
        context.draw("pauses").shuffle(names)
        if context.short:
            names = names[:1]
        for name in (*names, "tritonserver"):
            limit_s = NOTICED_S + (SERVER_LIMIT_S if name == "tritonserver" else MODEL_LIMIT_S)
            yield stage.strike("SIGSTOP", name, signal.SIGSTOP, context.pick(PAUSES, 1), limit_s)
        yield stage.closed()


CAMPAIGN = Campaign(
    "pauses",
    "SIGSTOP of every Python model and of tritonserver",
    run,
    about="As the kills, but the process hangs for good instead of dying: 2 s to notice it count into the limit.",
)
