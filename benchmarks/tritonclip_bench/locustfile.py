"""Load for a served CLIP over gRPC, for `tritonclip bench` and for plain locust:

    locust -f benchmarks/tritonclip_bench/locustfile.py --headless -u 8 -r 8 -t 30s --scenario mixed

`--host` is the server's gRPC address, HOST:PORT.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any, ClassVar

import gevent
import grpc
import grpc.experimental.gevent as grpc_gevent
from locust import TaskSet, User, constant
from locust import events as locust_events
from locust.env import Environment
from locust.runners import LocalRunner

from tritonclip_bench.endpoint import connect
from tritonclip_bench.errors import BenchError, WrongAnswerError
from tritonclip_bench.files import check_writable
from tritonclip_bench.measurement import Measurement
from tritonclip_bench.options import add_measurement_arguments, add_workload_arguments
from tritonclip_bench.scenarios import SCENARIOS
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

    def on_start(self) -> None:
        """Open this user's connection."""
        self.channel, self.stub = connect(self.host)

    def on_stop(self) -> None:
        """Close it."""
        self.channel.close()

    def send(self, model: str) -> None:
        """Call the entry point `model` once and report the time to `events.request`."""
        call = self.workload.call(model)
        failure: Exception | None = None
        size, wall_s, begun_s = 0, time.time(), time.perf_counter()
        try:
            response = self.stub.ModelInfer(call.request, timeout=self.deadline_s)
            elapsed_ms = (time.perf_counter() - begun_s) * 1000
            size = sum(map(len, response.raw_output_contents))
            self.workload.check(call, response)
        except grpc.RpcError as error:
            elapsed_ms = (time.perf_counter() - begun_s) * 1000
            failure = WrongAnswerError(f"{error.code().name}: {error.details()}")
        except WrongAnswerError as error:
            failure = error
        self.environment.events.request.fire(
            request_type="gRPC",
            name=model,
            response_time=elapsed_ms,
            response_length=size,
            exception=failure,
            context={"items": call.items},
            start_time=wall_s,
        )
        if failure is not None:
            gevent.sleep(PAUSE_AFTER_FAILURE_S)


def calls_of(scenario: str) -> list[TaskSet | Callable[..., Any]]:
    """Locust's tasks for a declared scenario: a call stands in it as often as its weight says."""
    return [_task(model) for model, weight in SCENARIOS[scenario].weights.items() for _ in range(weight)]


def _task(model: str) -> Callable[[TritonUser], None]:
    def task(user: TritonUser) -> None:
        user.send(model)

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
        if options.results is not None:
            check_writable(options.results)
        if isinstance(runner, LocalRunner):
            sent = TritonUser.workload.pictures.describe()
            Measurement(environment, runner, options, sent).hook_in()
        elif options.results is not None:
            raise BenchError("--results needs all users in one process; leave out --processes and --worker")
    except (BenchError, ClipError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


events.init_command_line_parser.add_listener(_add_arguments)
events.init.add_listener(_set_up)
