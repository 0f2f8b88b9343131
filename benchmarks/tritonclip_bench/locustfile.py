"""Load for a served CLIP over gRPC, for `tritonclip bench` and for plain locust:

    locust -f benchmarks/tritonclip_bench/locustfile.py --headless -u 8 -r 8 -t 30s --scenario mixed

`--host` is the server's gRPC address, HOST:PORT.
"""

from __future__ import annotations

import argparse
import itertools
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import gevent
import grpc
import grpc.experimental.gevent as grpc_gevent
from gevent.pool import Group
from locust import TaskSet, User, constant
from locust import events as locust_events
from locust.env import Environment
from locust.runners import LocalRunner

from tritonclip_bench.arrivals import MAX_IN_FLIGHT, Arrivals, InFlight
from tritonclip_bench.endpoint import connect
from tritonclip_bench.errors import BenchError, WrongAnswerError
from tritonclip_bench.files import check_writable
from tritonclip_bench.measurement import Measurement
from tritonclip_bench.options import add_measurement_arguments, add_rate_argument, add_workload_arguments
from tritonclip_bench.scenarios import SCENARIOS
from tritonclip_bench.server_watch import ServerWatch
from tritonclip_bench.workload import Workload, prepare
from tritonclip_client.errors import ClipError
from tritonclip_client.options import DEFAULT_ADDRESS

# Before the first channel: a call then waits in gevent's loop and leaves the other users running.
grpc_gevent.init_gevent()

# Locust's hooks carry no types.
events: Any = locust_events

# A server that refuses at once must not be hammered at the speed of a loop.
PAUSE_AFTER_FAILURE_S = 0.1


class TritonUser(User):
    """Sends one request after another over a connection of its own, and checks every answer."""

    abstract = True
    host = DEFAULT_ADDRESS
    wait_time = constant(0)
    workload: ClassVar[Workload]
    deadline_s: ClassVar[float]
    # Requests a second of each user; None: it waits for its answer.
    rate: ClassVar[float | None] = None
    in_flight: ClassVar[InFlight]
    seeds: ClassVar[Iterator[int]]

    def on_start(self) -> None:
        """Open this user's connection."""
        self.channel, self.stub = connect(self.host)
        self.sent = Group()
        if self.rate is not None:
            self.arrivals = Arrivals(self.rate, next(self.seeds), time.perf_counter())

    def on_stop(self) -> None:
        """Close it; an open loop's requests without answer were counted by then."""
        self.sent.kill(block=False)
        self.channel.close()

    def ask(self, model: str) -> None:
        """Send a request and wait for its answer; in an open loop wait until it is due, and for no answer."""
        if self.rate is None:
            if not self.send(model, time.perf_counter()):
                gevent.sleep(PAUSE_AFTER_FAILURE_S)
            return
        due_s = self.arrivals.next_s()
        gevent.sleep(max(0.0, due_s - time.perf_counter()))
        if len(self.in_flight) < MAX_IN_FLIGHT:
            self.sent.spawn(self._send_due, model, due_s)
        else:
            self.in_flight.refuse()
            # It would have waited for all that wait already.
            age_s = time.perf_counter() - self.in_flight.oldest_s()
            failure = WrongAnswerError(f"not sent: {MAX_IN_FLIGHT} requests wait for answers")
            self._report(model, due_s, age_s, 0, failure, gave_up=True)

    def _send_due(self, model: str, due_s: float) -> None:
        ticket = self.in_flight.depart(model, due_s)
        try:
            self.send(model, due_s)
        finally:
            self.in_flight.arrive(ticket)

    def send(self, model: str, due_s: float) -> bool:
        """Call the entry point `model` once and report the time since `due_s`; returns whether it went well."""
        call = self.workload.call(model)
        failure: Exception | None = None
        size, gave_up = 0, False
        try:
            response = self.stub.ModelInfer(call.request, timeout=self.deadline_s)
            answered_s = time.perf_counter()
            size = sum(map(len, response.raw_output_contents))
            self.workload.check(call, response)
        except grpc.RpcError as error:
            answered_s = time.perf_counter()
            failure = WrongAnswerError(f"{error.code().name}: {error.details()}")
            gave_up = self.rate is not None and error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        except WrongAnswerError as error:
            failure = error
        self._report(model, due_s, answered_s - due_s, size, failure, items=call.items, gave_up=gave_up)
        return failure is None

    def _report(
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
        self.environment.events.request.fire(
            request_type="gRPC",
            name=model,
            response_time=took_s * 1000,
            response_length=size,
            exception=failure,
            context={"items": items, "gave_up": gave_up},
            start_time=time.time() - (time.perf_counter() - due_s),
        )


def calls_of(scenario: str) -> list[TaskSet | Callable[..., Any]]:
    """Locust's tasks for a declared scenario: a call stands in it as often as its weight says."""
    return [_task(model) for model, weight in SCENARIOS[scenario].weights.items() for _ in range(weight)]


def _task(model: str) -> Callable[[TritonUser], None]:
    def task(user: TritonUser) -> None:
        user.ask(model)

    task.__name__ = model
    return task


class ImageUser(TritonUser):
    """Pictures in, embeddings out."""

    tasks = calls_of("image")


class TextUser(TritonUser):
    """Texts in, embeddings out."""

    tasks = calls_of("text")


class MixedUser(TritonUser):
    """Mostly pictures, some texts, a few classifications."""

    tasks = calls_of("mixed")


class ClipUser(TritonUser):
    """Pictures against labels."""

    tasks = calls_of("clip")


USERS: dict[str, type[TritonUser]] = {
    "image": ImageUser,
    "text": TextUser,
    "mixed": MixedUser,
    "clip": ClipUser,
}


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_workload_arguments(parser)
    add_rate_argument(parser)
    add_measurement_arguments(parser)


def _set_up(environment: Environment, runner: Any, **_: Any) -> None:
    """Ask the server what it serves, make the workload, and hook the measurement in.

    An exception here would only be logged, so a mistake ends the process with its exit code.
    """
    options: Any = environment.parsed_options
    try:
        if options.user_classes:
            raise BenchError(
                f"{', '.join(options.user_classes)} named; choose what to send with --scenario {'|'.join(USERS)}"
            )
        environment.user_classes = [USERS[options.scenario]]
        TritonUser.deadline_s = float(options.deadline)
        TritonUser.workload = prepare(options, environment.host or DEFAULT_ADDRESS)
        TritonUser.in_flight = InFlight()
        if options.rate is not None:
            # Users on other machines or in other processes draw from seeds of their own.
            TritonUser.seeds = itertools.count(secrets.randbelow(2**31))
            TritonUser.rate = options.rate / (options.num_users or 1)
        if options.results is not None:
            check_writable(options.results)
        if isinstance(runner, LocalRunner):
            sent = TritonUser.workload.pictures.describe()
            address = environment.host or DEFAULT_ADDRESS
            watch = ServerWatch(connect(address)[1], address, options.metrics_url)
            Measurement(environment, runner, options, sent, TritonUser.in_flight, watch).hook_in()
        elif options.results is not None:
            raise BenchError("--results needs all users in one process; leave out --processes and --worker")
    except (BenchError, ClipError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


events.init_command_line_parser.add_listener(_add_arguments)
events.init.add_listener(_set_up)
