"""The users of a load test: each sends requests over a connection of its own, and checks every answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import gevent
import grpc
from gevent.pool import Group
from locust import TaskSet, User, constant

from tritonclip_bench.errors import WrongAnswerError
from tritonclip_bench.load.window import Window
from tritonclip_bench.server.endpoint import connect
from tritonclip_bench.traffic.arrivals import MAX_IN_FLIGHT, Arrivals
from tritonclip_bench.traffic.shapes import Shape
from tritonclip_bench.traffic.workload import Workload
from tritonclip_client.options import DEFAULT_ADDRESS

# A server that refuses at once must not be hammered at the speed of a loop.
PAUSE_AFTER_FAILURE_S = 0.1
# Poll interval of idle users.
TURN_S = 0.05


@dataclass
class Traffic:
    """What the users of this process send now.

    Attributes:
        workload: makes requests and checks answers.
        deadline_s: of a request.
        window: where it is noted.
        rate: requests a second of each user in an open loop, of a shape the highest; None: it waits for its answer.
        seeds: of each user's arrivals.
        numbers: of the users, which are counted over all processes.
        shape: how the load changes over the `duration_s` of the window; None: it does not.
    """

    workload: Workload
    deadline_s: float
    window: Window
    rate: float | None
    seeds: Iterator[int]
    numbers: Iterator[int]
    shape: Shape | None = None
    duration_s: float = 0.0

    def level(self, at_s: float) -> float:
        """The load that the shape asks for at a moment of `time.perf_counter`."""
        recorder = self.window.recorder
        assert self.shape is not None
        return self.shape.at(at_s - recorder.begun_s if recorder.recording else 0.0, self.duration_s)


def tasks_of(weights: Mapping[str, int]) -> list[TaskSet | Callable[..., Any]]:
    """Locust's tasks for calls of entry points: one stands in it as often as its weight says."""
    return [_task(model) for model, weight in weights.items() for _ in range(weight)]


def _task(model: str) -> Callable[[Any], None]:
    def task(user: TritonUser) -> None:
        user.ask(model)

    task.__name__ = model
    return task


class TritonUser(User):
    """Sends one request after another; in an open loop when they are due."""

    host = DEFAULT_ADDRESS
    wait_time = constant(0)
    traffic: ClassVar[Traffic]
    # What a run sends is set when it begins; locust complains of users without tasks before that.
    tasks = tasks_of({"embed_image": 1})

    def on_start(self) -> None:
        """Open this user's connection."""
        self.channel, self.stub = connect(self.host)
        self.sent = Group()
        self.number = next(self.traffic.numbers)
        if self.traffic.rate is not None:
            self.arrivals = Arrivals(self.traffic.rate, next(self.traffic.seeds), time.perf_counter())

    def on_stop(self) -> None:
        """Close it; an open loop's requests without answer were counted by then."""
        self.sent.kill(block=False)
        self.channel.close()

    def ask(self, model: str) -> None:
        """Send a request and wait for its answer; in an open loop wait until it is due, and for no answer."""
        if self.traffic.rate is not None:
            self._send_next(model)
            return
        if self.traffic.shape is not None:
            while self.number >= self.traffic.level(time.perf_counter()):
                gevent.sleep(TURN_S)
        if not self.send(model, time.perf_counter()):
            gevent.sleep(PAUSE_AFTER_FAILURE_S)

    def _send_next(self, model: str) -> None:
        shape = self.traffic.shape
        due_s = self.arrivals.next_s()
        gevent.sleep(max(0.0, due_s - time.perf_counter()))
        # Of a shape only now is known where in the window it is due.
        if shape is not None and not self.arrivals.is_kept(self.traffic.level(due_s) / shape.peak):
            return
        in_flight = self.traffic.window.in_flight
        if len(in_flight) < MAX_IN_FLIGHT:
            self.sent.spawn(self._send_due, model, due_s)
        else:
            in_flight.refuse()
            # It would have waited for all that wait already.
            age_s = time.perf_counter() - in_flight.oldest_s()
            failure = WrongAnswerError(f"not sent: {MAX_IN_FLIGHT} requests wait for answers")
            self._note(model, due_s, age_s, 0, failure, gave_up=True)

    def _send_due(self, model: str, due_s: float) -> None:
        ticket = self.traffic.window.in_flight.depart(model, due_s)
        try:
            self.send(model, due_s)
        finally:
            self.traffic.window.in_flight.arrive(ticket)

    def send(self, model: str, due_s: float) -> bool:
        """Call the entry point `model` once and note the time since `due_s`; returns whether it went well."""
        traffic = self.traffic
        window, now = traffic.window, time.perf_counter
        begun_s = now()
        call = traffic.workload.call(model)
        made_s = now()
        failure: Exception | None = None
        size, gave_up = 0, False
        try:
            response = self.stub.ModelInfer(call.request, timeout=traffic.deadline_s)
            answered_s = now()
            window.watch.failing_since_s = None
            traffic.workload.check(call, response)
            size = sum(map(len, response.raw_output_contents))
        except grpc.RpcError as error:
            answered_s = now()
            code = error.code()
            failure = WrongAnswerError(f"{code.name}: {error.details()}")
            gave_up = traffic.rate is not None and code == grpc.StatusCode.DEADLINE_EXCEEDED
            if code == grpc.StatusCode.UNAVAILABLE:
                window.watch.refused()
            else:
                window.watch.failing_since_s = None
        except WrongAnswerError as error:
            failure = error
        checked_s = now()
        self._note(call.model, due_s, answered_s - due_s, size, failure, items=call.items, gave_up=gave_up)
        window.times.count(made_s - begun_s, checked_s - answered_s, call.request)
        return failure is None

    def _note(
        self,
        model: str,
        due_s: float,
        took_s: float,
        size: int,
        failure: Exception | None,
        *,
        items: int = 0,
        gave_up: bool = False,
    ) -> None:
        took_ms = took_s * 1000
        self.traffic.window.recorder.add(model, took_ms, items, failure, gave_up=gave_up, due_s=due_s)
        # For locust's own table.
        self.environment.events.request.fire(
            request_type="gRPC",
            name=model,
            response_time=took_ms,
            response_length=size,
            exception=failure,
            context={},
            start_time=time.time() - (time.perf_counter() - due_s),
        )
