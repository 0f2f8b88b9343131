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
import numpy as np
from geventhttpclient import HTTPClient
from geventhttpclient.response import HTTPParseError
from locust import User, constant
from locust import events as locust_events
from locust.env import Environment
from locust.runners import LocalRunner

# Locust puts no folder of ours on the path.
sys.path.insert(0, str(Path(__file__).parents[1]))

from baselines.http_api import APIS, Floats, Request, embeddings
from tritonclip_bench.arrivals import InFlight
from tritonclip_bench.captions import text_stream
from tritonclip_bench.errors import BenchError, WrongAnswerError
from tritonclip_bench.measurement import Measurement
from tritonclip_bench.options import add_measurement_arguments, add_rate_argument, add_workload_arguments
from tritonclip_bench.pictures import load_pictures
from tritonclip_bench.workload import NORM_TOLERANCE

# Locust's hooks carry no types.
events: Any = locust_events

# As the users of gRPC do, see tritonclip_bench.locustfile.
PAUSE_AFTER_FAILURE_S = 0.1
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
        """Ask once and report; returns whether it went well. The time ends before the answer is decoded."""
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
            check(embeddings(answer), self.batch, self.dim)
        except (OSError, HTTPParseError, WrongAnswerError) as error:
            answered_s = time.perf_counter()
            failure = error
        self.environment.events.request.fire(
            request_type="HTTP",
            name=self.model,
            response_time=(answered_s - sent_s) * 1000,
            response_length=len(answer),
            exception=failure,
            context={"items": self.batch, "gave_up": False},
            start_time=time.time() - (time.perf_counter() - sent_s),
        )
        return failure is None


def check(found: Floats, batch: int, dim: int) -> None:
    """Raise WrongAnswerError unless `found` are finite vectors of length 1, [batch, dim]."""
    if found.shape != (batch, dim):
        raise WrongAnswerError(f"the embeddings have the shape {list(found.shape)}, not {[batch, dim]}")
    # A norm that is not finite is not close to 1 either.
    if not np.all(np.abs(np.linalg.norm(found, axis=1) - 1) <= NORM_TOLERANCE):
        raise WrongAnswerError("the embeddings are not of length 1")


def _requests(options: Any, pictures: tuple[bytes, ...]) -> Iterator[Request]:
    api = APIS[options.api]
    if options.scenario == "image":
        return _cut(itertools.cycle(pictures), options.batch_size, api.images)
    return _cut(text_stream(None, seed=options.seed, repeat=False), options.batch_size, api.texts)


def _cut(items: Iterator[Any], size: int, make: Callable[[list[Any]], Request]) -> Iterator[Request]:
    while True:
        yield make(list(itertools.islice(items, size)))


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_workload_arguments(parser)
    add_rate_argument(parser)
    add_measurement_arguments(parser)
    parser.add_argument("--api", choices=tuple(APIS), required=True, help="whose requests and answers")
    parser.add_argument("--dim", type=int, required=True, help="values in an embedding")


def _set_up(environment: Environment, runner: LocalRunner, **_: Any) -> None:
    options: Any = environment.parsed_options
    try:
        if options.scenario not in MODELS or options.rate is not None:
            raise BenchError(f"--scenario {options.scenario}; give image or text, and no --rate")
        pictures = load_pictures(options.pictures)
        HttpUser.requests = _requests(options, pictures.encoded)
        HttpUser.model = MODELS[options.scenario]
        HttpUser.batch, HttpUser.dim, HttpUser.deadline_s = options.batch_size, options.dim, float(options.deadline)
        Measurement(environment, runner, options, pictures.describe(), InFlight(), lambda: None).hook_in()
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


events.init_command_line_parser.add_listener(_add_arguments)
events.init.add_listener(_set_up)
