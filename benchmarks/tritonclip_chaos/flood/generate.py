"""`python -m tritonclip_chaos.flood.generate PLAN.json RESULT.npz`: send prepared requests when they are due.

A plan has `address`, `seconds`, `deadline_s`, `seed` and `flows`: each with the file of its `requests`, the name of its
`caller`, and a `rate` a second (Poisson), or a `width` for a closed loop of so many at once.
"""

from __future__ import annotations

import heapq
import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2

from tritonclip_bench.server.endpoint import CHANNEL_OPTIONS
from tritonclip_bench.traffic.arrivals import SEEDS_OF_A_PROCESS, Arrivals
from tritonclip_chaos.flood.requests import read_requests
from tritonclip_client.options import proxy_arguments

NICE = 2
CHANNELS = 8
# Answers that are kept to be compared; parsing all of them would cost what the server needs.
KEPT = 400
MOST_IN_FLIGHT = 20_000
PATIENCE_S = 5.0
ALL_SENT = "all sent"
METHOD = "/inference.GRPCInferenceService/ModelInfer"
# The columns of a result, a row each request: its flow, its request's number, three moments and a status.
COLUMNS = ("flow", "number", "due_s", "sent_s", "end_s", "status")
ANSWERED, REFUSED, LOST, FAILED = range(4)
# What Triton itself says when a queue is full, or when a request waited too long in one.
REFUSALS = ("overloaded:", "timeout expired", "exceeds maximum queue size", "exceeding maximum queue size")


@dataclass
class Flow:
    """One caller's requests, sent in turn."""

    requests: Sequence[bytes]
    caller: str
    rate: float = 0.0
    width: int = 0
    sent: int = 0


@dataclass
class Flood:
    """Sends and notes what came back."""

    address: str
    deadline_s: float
    flows: Sequence[Flow]
    rows: list[tuple[float, ...]] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)
    kept: list[tuple[int, int, bytes]] = field(default_factory=list)
    in_flight: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _closed_until_s: float = 0.0

    def run(self, seconds: float, seed: int) -> None:
        """Send for so long, and wait for the answers."""
        options = [*CHANNEL_OPTIONS, *proxy_arguments(self.address)]
        channels = [grpc.insecure_channel(self.address, options=options) for _ in range(CHANNELS)]
        try:
            # Serialised already, and an answer is looked at afterwards.
            self._calls = [channel.unary_unary(METHOD) for channel in channels]
            begin_s = time.perf_counter()
            self._closed_until_s = begin_s + seconds
            for place, flow in enumerate(self.flows):
                for _ in range(flow.width):
                    self._send(place, time.perf_counter())
            self._send_when_due(begin_s, seconds, seed)
            # Whoever started this looks from now on how soon the server is itself again.
            print(ALL_SENT, flush=True)
            end_s = time.perf_counter() + self.deadline_s + PATIENCE_S
            while self.in_flight and time.perf_counter() < end_s:
                time.sleep(0.02)
        finally:
            for channel in channels:
                channel.close()

    def _send_when_due(self, begin_s: float, seconds: float, seed: int) -> None:
        arrivals = {
            place: Arrivals(flow.rate, seed + place * SEEDS_OF_A_PROCESS, begin_s)
            for place, flow in enumerate(self.flows)
            if flow.rate
        }
        queue = [(one.next_s(), place) for place, one in arrivals.items()]
        heapq.heapify(queue)
        while queue:
            due_s, place = queue[0]
            if due_s >= begin_s + seconds:
                break
            heapq.heapreplace(queue, (arrivals[place].next_s(), place))
            if (wait_s := due_s - time.perf_counter()) > 0:
                time.sleep(wait_s)
            self._send(place, due_s)
        time.sleep(max(0.0, begin_s + seconds - time.perf_counter()))

    def _send(self, place: int, due_s: float) -> None:
        flow = self.flows[place]
        number = flow.sent % len(flow.requests)
        flow.sent += 1
        sent_s = time.perf_counter()
        if self.in_flight >= MOST_IN_FLIGHT:
            self.rows.append((place, number, due_s, sent_s, sent_s, FAILED))
            self.errors["not sent: too many in flight"] = self.errors.get("not sent: too many in flight", 0) + 1
            return
        with self._lock:
            self.in_flight += 1
        call = self._calls[flow.sent % CHANNELS].future(
            flow.requests[number], timeout=self.deadline_s, metadata=(("tritonclip-caller", flow.caller),)
        )
        call.add_done_callback(lambda done: self._land(done, place, number, due_s, sent_s))

    def _land(self, done: Any, place: int, number: int, due_s: float, sent_s: float) -> None:
        end_s = time.perf_counter()
        code = done.code()
        status, error = ANSWERED, ""
        if code != grpc.StatusCode.OK:
            error = " ".join(str(done.details()).split())
            refused = any(phrase in error.lower() for phrase in REFUSALS)
            status = REFUSED if refused else LOST if code == grpc.StatusCode.DEADLINE_EXCEEDED else FAILED
        with self._lock:
            self.in_flight -= 1
            self.rows.append((place, number, due_s, sent_s, end_s, status))
            if status in (FAILED, LOST):
                named = f"{code.name} {error}"[:160]
                self.errors[named] = self.errors.get(named, 0) + 1
            elif status == ANSWERED and len(self.kept) < KEPT:
                self.kept.append((place, number, done.result()))
        if self.flows[place].width and end_s < self._closed_until_s:
            self._send(place, end_s)


def embedding(answer: bytes) -> Any:
    """The embeddings of a serialised answer, float32 [N, D]."""
    response = service_pb2.ModelInferResponse.FromString(answer)
    return np.frombuffer(response.raw_output_contents[0], "<f4").reshape(tuple(response.outputs[0].shape))


def main(plan_path: str, result_path: str) -> None:
    """Run a plan; the result is for `outcome.read`."""
    os.nice(NICE)
    plan = json.loads(Path(plan_path).read_text(encoding="utf-8"))
    flows = [
        Flow(read_requests(Path(one["requests"])), one["caller"], one.get("rate", 0.0), one.get("width", 0))
        for one in plan["flows"]
    ]
    flood = Flood(plan["address"], plan["deadline_s"], flows)
    flood.run(plan["seconds"], plan["seed"])
    kept = [(place, number, embedding(answer)) for place, number, answer in flood.kept]
    errors = sorted(flood.errors.items(), key=lambda one: -one[1])[:5]
    np.savez(
        result_path,
        rows=np.array(flood.rows, np.float64).reshape(-1, len(COLUMNS)),
        unanswered=flood.in_flight,
        kept=np.array([(place, number, len(rows)) for place, number, rows in kept], np.int64).reshape(-1, 3),
        embeddings=np.concatenate([rows for _, _, rows in kept]) if kept else np.empty((0, 0), np.float32),
        errors=np.array([f"{count} x {error}" for error, count in errors], np.str_),
    )


if __name__ == "__main__":
    main(*sys.argv[1:3])
