"""Load for the HTTP servers: the closed loop, the window and the checks of `tritonclip bench`, over HTTP.

    locust -f benchmarks/baselines/http_locustfile.py --headless -u 8 -r 8 -t 30s --host http://127.0.0.1:8010 \
      --api fastapi --dim 512 --scenario image
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import gevent
import psutil
from geventhttpclient import HTTPClient
from geventhttpclient.response import HTTPParseError
from locust import User, constant
from locust import events as locust_events
from locust.env import Environment

# Locust puts no folder of ours on the path.
sys.path.insert(0, str(Path(__file__).parents[1]))

from baselines.http_api import APIS, Request, embeddings
from tritonclip_bench.errors import BenchError, WrongAnswerError
from tritonclip_bench.load.measurement import Measurement, OwnLoad, Test
from tritonclip_bench.load.users import PAUSE_AFTER_FAILURE_S
from tritonclip_bench.load.window import Window
from tritonclip_bench.traffic.answers import check_embeddings
from tritonclip_bench.traffic.captions import text_stream
from tritonclip_bench.traffic.images import load_images
from tritonclip_bench.traffic.options import add_measurement_arguments, add_workload_arguments, settle_seed

# Locust's hooks carry no types.
events: Any = locust_events

MODELS = {"image": "embed_image", "text": "embed_text"}


def ask(user: HttpUser) -> None:
    """The one task."""
    if not user.send():
        gevent.sleep(PAUSE_AFTER_FAILURE_S)


class HttpUser(User):
    """Sends one request after another over a connection of its own, and checks every answer."""

    wait_time = constant(0)
    tasks = [ask]  # noqa: RUF012 - as locust declares it
    requests: ClassVar[Iterator[Request]]
    model: ClassVar[str]
    batch: ClassVar[int]
    dim: ClassVar[int]
    deadline_s: ClassVar[float]
    window: ClassVar[Window]

    def on_start(self) -> None:
        """Open this user's connection."""
        url = urlsplit(str(self.host))
        self.client = HTTPClient(
            str(url.hostname), url.port, connection_timeout=self.deadline_s, network_timeout=self.deadline_s
        )

    def on_stop(self) -> None:
        """Close it."""
        self.client.close()

    def send(self) -> bool:
        """Ask once and note it; returns whether it went well. The time ends before the answer is decoded."""
        begun_s = time.perf_counter()
        request = next(self.requests)
        sent_s = time.perf_counter()
        failure: Exception | None = None
        answer = b""
        try:
            response = self.client.post(request.path, request.body, headers={"Content-Type": request.content_type})
            answer = bytes(response.read())
            answered_s = time.perf_counter()
            if response.status_code != 200:
                raise WrongAnswerError(f"HTTP {response.status_code}: {answer[:200].decode(errors='replace')}")
            check_embeddings({"embedding": embeddings(answer)}, "embedding", (self.batch, self.dim))
        except WrongAnswerError as error:
            failure = error
        except (OSError, HTTPParseError) as error:
            answered_s = time.perf_counter()
            failure = error
        checked_s = time.perf_counter()
        took_ms = (answered_s - begun_s) * 1000
        self.window.recorder.add(self.model, took_ms, self.batch, failure, due_s=begun_s)
        self.window.times.count(sent_s - begun_s, checked_s - answered_s, request)
        # For locust's own table.
        self.environment.events.request.fire(
            request_type="HTTP",
            name=self.model,
            response_time=took_ms,
            response_length=len(answer),
            exception=failure,
            context={},
            start_time=time.time() - (checked_s - begun_s),
        )
        return failure is None


class Load(OwnLoad):
    """The users of this process, and what the server's processes use of the CPU meanwhile.

    Args:
        server: its process id; None where nobody asks.
    """

    def __init__(self, window: Window, server: int | None) -> None:
        super().__init__(window)
        self._sent = window.sent
        self._server = None if server is None else psutil.Process(server)

    def open(self) -> None:
        """Count from here on."""
        self._begun = self._used()
        super().open()

    def close(self) -> None:
        """Everything is in the window already, but for what the server used."""
        seconds, until_s = self._used()
        before, since_s = self._begun
        cores = None if self._server is None else (seconds - before) / (until_s - since_s)
        self._sent["server_cpu_cores"] = cores

    def _used(self) -> tuple[float, float]:
        """CPU seconds of the server and everything that it started, and when that was."""
        try:
            processes = [] if self._server is None else [self._server, *self._server.children(recursive=True)]
            times = [process.cpu_times() for process in processes]
        except psutil.Error:
            times = []
        return sum(one.user + one.system for one in times), time.perf_counter()


class NothingCounted:
    """In the place of what Triton counts of its models."""

    def begin(self) -> None:
        """Nothing to read."""

    def end(self) -> None:
        """Nothing to read."""

    def results(self, seen: object) -> dict[str, Any]:
        """No stages."""
        return {"stages": {}}


def _requests(options: Any, images: tuple[bytes, ...]) -> Iterator[Request]:
    api = APIS[options.api]
    if options.scenario == "image":
        return _cut(itertools.cycle(images), options.batch_size, api.images)
    return _cut(text_stream(None, seed=settle_seed(options.seed), repeat=False), options.batch_size, api.texts)


def _cut(items: Iterator[Any], size: int, make: Callable[[list[Any]], Request]) -> Iterator[Request]:
    while True:
        yield make(list(itertools.islice(items, size)))


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_workload_arguments(parser)
    add_measurement_arguments(parser)
    parser.add_argument("--api", choices=tuple(APIS), required=True, help="whose requests and answers")
    parser.add_argument("--dim", type=int, required=True, help="values in an embedding")
    parser.add_argument("--server-pid", type=int, help="the server's process, to tell its CPU use")


def _set_up(environment: Environment, **_: Any) -> None:
    options: Any = environment.parsed_options
    try:
        if options.scenario not in MODELS:
            raise BenchError(f"--scenario {options.scenario}; give {' or '.join(MODELS)}")
        images = load_images(options.images)
        HttpUser.requests = _requests(options, images.encoded)
        HttpUser.model = MODELS[options.scenario]
        HttpUser.batch, HttpUser.dim, HttpUser.deadline_s = options.batch_size, options.dim, float(options.deadline)
        HttpUser.window = window = Window(sent={"images": images.describe()})
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    measurement = Measurement(environment, window, Load(window, options.server_pid))
    counted: Any = NothingCounted()
    test = Test(options, str(environment.host), False, counted)
    hooks: Any = environment.events
    hooks.test_start.add_listener(lambda **_: measurement.expect(test))
    measurement.hook_in()


events.init_command_line_parser.add_listener(_add_arguments)
events.init.add_listener(_set_up)
