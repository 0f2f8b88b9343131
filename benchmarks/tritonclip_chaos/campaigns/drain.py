"""SIGTERM under callers: what runs is answered, what is new is refused, and the server ends."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator

from tritonclip_chaos.callers import CALLERS, ask, share_out
from tritonclip_chaos.campaign import Campaign, Context
from tritonclip_chaos.material import Material
from tritonclip_chaos.records import Record, Sample
from tritonclip_client import ClipClient

TIMES = 3
CALM_S, END_S = 2.0, 25.0
# Its second request is a new one to the server.
SEVERAL_REQUESTS = "long text"
# A call that began this long before the signal was on its way, and has to be answered.
ON_ITS_WAY_S = 0.05


def run(context: Context) -> Iterator[Record]:
    """End servers, one after the other."""
    record = Record("drain", "SIGTERM under callers", context.seed)
    context.say("drain: SIGTERM under callers")
    slowest_s, statuses = 0.0, []
    for number in range(context.pick(TIMES, 1)):
        with context.serve() as server:
            material = context.material(server.address)
            with _Once(server.address, material, context.seed + number) as callers:
                time.sleep(CALM_S)
                told_s = time.monotonic()
                server.terminate()
                record.leftovers += server.stop()
                slowest_s = max(slowest_s, time.monotonic() - told_s)
            statuses.append(-1 if server.exit_status is None else server.exit_status)
        on_their_way = [one for one in callers.samples if one.begin_s < told_s - ON_ITS_WAY_S]
        later = [one for one in callers.samples if one.begin_s >= told_s - ON_ITS_WAY_S]
        record.add(on_their_way)
        record.count("calls after the signal", len(later))
        record.wrong += sum(one.outcome == "wrong" for one in later)
        record.lost += sum(one.outcome == "lost" for one in later)
    record.figures["seconds to the end"] = slowest_s
    record.check("wrong answers", record.wrong, 0)
    record.check("calls on their way that were not answered", record.tried - record.answered, 0)
    record.check("ends within", slowest_s, END_S, unit="s")
    record.check("exit status", max(map(abs, statuses)), 0)
    record.check("things left behind", len(record.leftovers), 0)
    yield record


class _Once:
    """Callers that do not repeat, and end at the first call that is not answered. A context manager."""

    def __init__(self, address: str, material: Material, seed: int) -> None:
        self.samples: list[Sample] = []
        self._end = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(address, material, kind, f"{seed}:{number}"), daemon=True)
            for number, kind in enumerate(one for one in share_out(CALLERS) if one != SEVERAL_REQUESTS)
        ]

    def __enter__(self) -> _Once:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(35.0)

    def _ask(self, address: str, material: Material, kind: str, seed: str) -> None:
        chosen = random.Random(seed)
        with ClipClient(address, retry=False) as client:
            while not self._end.is_set():
                sample = ask(client, kind, material, chosen)
                self.samples.append(sample)
                if sample.outcome != "answered":
                    return


CAMPAIGN = Campaign("drain", "SIGTERM under callers: what is on its way is answered, and the server ends", run)
