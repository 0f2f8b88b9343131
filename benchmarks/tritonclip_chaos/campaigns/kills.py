"""kill -9 of every Python model's process and of tritonserver, under callers."""

from __future__ import annotations

import signal
from collections.abc import Iterator

from tritonclip_chaos.campaign import Campaign, Context
from tritonclip_chaos.campaigns._faults import MODEL_LIMIT_S, SERVER_LIMIT_S, Stage
from tritonclip_chaos.records import Record

KILLS, SERVER_KILLS, FEWEST_EACH = 200, 20, 20
SHORT_INSTANCES = 2


def run(context: Context) -> Iterator[Record]:
    """Kill every instance, then tritonserver; a server that stays broken is replaced by a new one."""
    # Twenty ends within a minute are what is tried here, and no reason to give up.
    with Stage(context, "kills", "--restart-limit", "1000") as stage:
        instances = [stub.instance for stub in stage.server.stubs()]
        context.draw("kills").shuffle(instances)
        server_kills = context.pick(SERVER_KILLS, 1)
        instances = instances[: context.pick(len(instances), SHORT_INSTANCES)]
        each = context.pick(max(FEWEST_EACH, -(-(KILLS - server_kills) // max(1, len(instances)))), 1)
        for instance in instances:
            yield stage.strike("kill -9", instance, signal.SIGKILL, each, MODEL_LIMIT_S)
        yield stage.strike("kill -9", "tritonserver", signal.SIGKILL, server_kills, SERVER_LIMIT_S)
        yield stage.closed()


CAMPAIGN = Campaign(
    "kills",
    "kill -9 of every Python model and of tritonserver",
    run,
    about="Every process is killed again and again under `ClipClient`s with their defaults, after a moment in "
    "which all kinds of calls were answered.",
)
