"""Load for a served CLIP over gRPC, for `tritonclip bench` and for plain locust:

    locust -f benchmarks/locustfile.py --headless -u 8 -r 8 -t 30s --scenario mixed

`--host` is the server's gRPC address, HOST:PORT. With `--processes`, or `--master` and `--worker`, the master measures.
"""

from __future__ import annotations

import argparse
import itertools
import signal
import sys
from pathlib import Path
from typing import Any

import gevent
import grpc.experimental.gevent as grpc_gevent
from locust import events as locust_events
from locust.env import Environment
from locust.exception import StopTest
from locust.runners import MasterRunner, WorkerRunner

from tritonclip_bench.errors import BenchError
from tritonclip_bench.files import check_writable
from tritonclip_bench.load.distributed import Worker, WorkersLoad
from tritonclip_bench.load.measurement import Measurement, OwnLoad, Test
from tritonclip_bench.load.users import Traffic, TritonUser, tasks_of
from tritonclip_bench.load.window import Window
from tritonclip_bench.server.endpoint import connect
from tritonclip_bench.server.watch import ServerWatch
from tritonclip_bench.traffic import workload
from tritonclip_bench.traffic.arrivals import SEEDS_OF_A_PROCESS
from tritonclip_bench.traffic.options import (
    add_measurement_arguments,
    add_rate_argument,
    add_workload_arguments,
    settle_seed,
)
from tritonclip_bench.traffic.scenarios import SCENARIOS
from tritonclip_bench.traffic.shapes import check_processes, parse_shape
from tritonclip_client.errors import ClipError
from tritonclip_client.options import DEFAULT_ADDRESS

# Locust's hooks carry no types.
events: Any = locust_events

# A master that was interrupted too tells its workers what to do; without one they end by themselves.
WORKER_WAITS_S = 5.0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise BenchError(message)


class _AsText:
    """Declares options to locust's parser; paths as text, because locust sends and shows what it parsed."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._parser = parser

    def add_argument(self, *names: str, **settings: Any) -> None:
        """As argparse's."""
        self._parser.add_argument(*names, **{**settings, "type": str} if settings.get("type") is Path else settings)


def _add_arguments(parser: Any) -> None:
    add_workload_arguments(parser)
    add_rate_argument(parser)
    add_measurement_arguments(parser)


def _typed(given: argparse.Namespace) -> argparse.Namespace:
    """Our options of `given` with their types: locust's web interface and its master give some as text.

    Raises:
        BenchError: a value that the command line would refuse.
    """
    parser = _Parser()
    _add_arguments(parser)
    words = []
    for name in vars(parser.parse_args([])):
        value = getattr(given, name)
        option = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(option)
        elif value is not None and value is not False and value != "":
            words.append(f"{option}={value}")
    return parser.parse_args(words)


class Session:
    """This process's part in the runs: it prepares each, and measures it unless a master does.

    Args:
        environment, runner: locust's.
    """

    def __init__(self, environment: Environment, runner: Any) -> None:
        self._environment = environment
        self._runner = runner
        self._window = Window()
        self._measurement: Measurement | None = None
        if isinstance(runner, WorkerRunner):
            Worker(environment, self._window)
        else:
            load = WorkersLoad(environment, self._window) if self._is_master else OwnLoad(self._window)
            self._measurement = Measurement(environment, self._window, load)

    @property
    def _is_master(self) -> bool:
        return isinstance(self._runner, MasterRunner)

    @property
    def _address(self) -> str:
        return str(self._environment.host or DEFAULT_ADDRESS)

    def hook_in(self) -> None:
        """Listen to the runs."""
        hooks: Any = self._environment.events
        hooks.test_start.add_listener(self._start)
        if self._measurement is not None:
            self._measurement.hook_in()
        if self._environment.web_ui is None:
            # Whoever interrupts a terminal's processes interrupts some of them twice, and writing must go on.
            gevent.signal_handler(signal.SIGINT, self._interrupt)

    def check(self) -> None:
        """Refuse what cannot work before anything is sent.

        Raises:
            BenchError: an option, a file or the server's limits do not allow it.
            ServerUnavailableError: nothing ready answers at the address.
        """
        given: Any = self._environment.parsed_options
        if given.user_classes:
            raise BenchError(
                f"{', '.join(given.user_classes)} named; choose what to send with --scenario {'|'.join(SCENARIOS)}"
            )
        options = _typed(given)
        self._duration_s(options)
        for path in (options.results, options.samples):
            if path is not None:
                check_writable(path)
        if self._is_master:
            workload.check(options, self._address)
        else:
            # The images are kept, so that drawing them takes nothing of the run's time.
            workload.prepare(options, self._address)

    def _duration_s(self, options: argparse.Namespace) -> float:
        """How long the window will be, as far as that is known; 0 where it is not.

        Raises:
            BenchError: a load shape needs to know it.
        """
        given: Any = self._environment.parsed_options
        run_s = getattr(given, "all_run_s", None) or given.run_time
        measured_s = float(options.measure or (run_s - options.warmup if run_s else 0))
        if options.shape and measured_s <= 0:
            raise BenchError("--shape changes the load over the measured time; give it with --measure TIME")
        return measured_s

    def _interrupt(self) -> None:
        if self._measurement is not None:
            self._measurement.interrupt()
        else:
            gevent.sleep(WORKER_WAITS_S)
            self._runner.quit()

    def _start(self, **_: Any) -> None:
        given: Any = self._environment.parsed_options
        try:
            if not isinstance(self._runner, WorkerRunner):
                # Workers get them with the master's options.
                given.all_users = given.num_users or 1
                given.all_run_s = given.run_time
                given.all_workers = self._runner.worker_index_max if self._is_master else 1
                given.seed = settle_seed(_typed(given).seed)
            self._prepare(_typed(given), given.all_users, given.all_workers)
        except (BenchError, ClipError) as error:
            print(f"error: {error}", file=sys.stderr)
            raise StopTest(str(error)) from None

    def _prepare(self, options: argparse.Namespace, users: int, workers: int) -> None:
        if self._environment.web_ui is not None:
            self.check()
        shape = options.shape and parse_shape(options.shape)
        if shape and not shape.is_open_loop and users < shape.peak:
            raise BenchError(f"{users} users and --shape {options.shape}; give as many users as it goes up to")
        if shape:
            check_processes(shape, users, workers)
        rate = shape.peak if shape and shape.is_open_loop else options.rate
        if not self._is_master:
            index = self._runner.worker_index
            made = workload.prepare(options, self._address, part=(index, workers))
            self._window.sent = made.describe()
            TritonUser.traffic = Traffic(
                made,
                float(options.deadline),
                self._window,
                rate=None if rate is None else rate / users,
                seeds=itertools.count(options.seed + index * SEEDS_OF_A_PROCESS),
                numbers=itertools.count(index, workers),
                shape=shape,
                duration_s=self._duration_s(options),
            )
            TritonUser.tasks = tasks_of(made.weights)
        if self._measurement is not None:
            server = ServerWatch(connect(self._address)[1], self._address, options.metrics_url)
            self._measurement.expect(Test(options, self._address, rate is not None, server))


def _set_up(environment: Environment, runner: Any, **_: Any) -> None:
    """Hook into locust's events, and where a run begins at once, refuse it here if it cannot work.

    An exception here would only be logged, so a mistake ends the process with its exit code.
    """
    # Before the first channel, and after the fork of --processes: a call then waits in gevent's loop and leaves the
    # other users running.
    grpc_gevent.init_gevent()
    # A run that cannot begin says so itself.
    gevent.get_hub().NOT_ERROR += (StopTest,)
    environment.user_classes = [TritonUser]
    session = Session(environment, runner)
    session.hook_in()
    if environment.web_ui is None and not isinstance(runner, WorkerRunner):
        try:
            session.check()
        except (BenchError, ClipError) as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(error.exit_code)


events.init_command_line_parser.add_listener(lambda parser: _add_arguments(_AsText(parser)))
events.init.add_listener(_set_up)
