"""Hostile requests to Triton's HTTP frontend, which `--http` opens, under ordinary callers of gRPC."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import psutil

from tritonclip_chaos.campaign import Campaign, Context
from tritonclip_chaos.campaigns._faults import SERVER_LIMIT_S, Stage
from tritonclip_chaos.errors import ServerFault
from tritonclip_chaos.hostile.http import KINDS, embeds, half_open, send
from tritonclip_chaos.records import Record

TIMES, HELD_OPEN_S, SHORT_OPEN_S = 4, 5.0, 1.0
# After a deadly request the process is gone at once, mostly before its connection is.
_DIES_S, _LISTENS_S = 1.0, 30.0
_POLL_S = 0.05
_ADDRESS = re.compile(r"HTTP ([^\s,;]+)")


def run(context: Context) -> Iterator[Record]:
    """A record a kind of request, one for connections that hang, and one for a server without `--http`."""
    with Stage(context, "http", "--http", "--http-port", "0", "--restart-limit", "1000") as stage:
        for name, make in KINDS.items():
            chance = context.draw(f"http {name}")
            record = stage.case(name)
            for _ in range(context.pick(TIMES, 1)):
                if context.left_s > 0:
                    _struck(stage, record, lambda: send(_address(stage), make(chance)))  # noqa: B023 - called at once
            yield stage.judged(record, SERVER_LIMIT_S)
        yield _hanging(stage)
        yield stage.closed()
    yield _closed_by_default(context)


def _struck(stage: Stage, record: Record, sends: Callable[[], int | None]) -> None:
    """Send one request, and count whether tritonserver outlived it."""
    _wait_listening(stage)
    statuses: list[int | None] = []
    before = stage.pid_of("tritonserver")
    ended: list[bool] = []

    def act() -> None:
        with suppress(OSError):
            statuses.append(sends())
        deadline = time.monotonic() + _DIES_S
        while stage.pid_of("tritonserver") == before and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        ended.append(stage.pid_of("tritonserver") != before)

    stage.fault(record, act)
    record.count("requests")
    record.count("ended tritonserver", sum(ended))
    record.count("answered 200", statuses.count(200))
    record.count("refused", sum(status is not None and status >= 400 for status in statuses))


def _hanging(stage: Stage) -> Record:
    record = stage.case("100 half-open connections")
    before = stage.pid_of("tritonserver")
    _wait_listening(stage)
    with half_open(_address(stage)):
        time.sleep(stage.context.pick(HELD_OPEN_S, SHORT_OPEN_S))
    record.count("requests", 100)
    record.count("ended tritonserver", int(stage.pid_of("tritonserver") != before))
    return stage.judged(record, SERVER_LIMIT_S)


def _closed_by_default(context: Context) -> Record:
    """Nothing that listens without `--http` embeds over HTTP."""
    context.say("http: without --http")
    record = Record("http", "without --http, the default", context.seed)
    with context.serve() as server:
        ports = sorted(_listening(server.processes()))
        embedding = [port for port in ports if embeds(f"127.0.0.1:{port}")]
        record.figures["ports that listen"] = len(ports)
        record.check("ports that embed over HTTP", len(embedding), 0)
        record.check("ports looked at", len(ports), 2, at_least=True)
        record.leftovers = server.stop()
    return record


def _listening(processes: list[psutil.Process]) -> set[int]:
    ports: set[int] = set()
    for process in processes:
        with suppress(psutil.Error):
            ports |= {one.laddr.port for one in process.net_connections("tcp") if one.status == psutil.CONN_LISTEN}
    return ports


def _address(stage: Stage) -> str:
    found = _ADDRESS.search(stage.server.output)
    if found is None:
        raise ServerFault(f"`tritonclip serve --http` names no address of HTTP; it said:\n{stage.server.output[-500:]}")
    return found[1]


def _wait_listening(stage: Stage) -> None:
    """Until HTTP is there again: it opens a little after gRPC."""
    deadline = time.monotonic() + _LISTENS_S
    while time.monotonic() < deadline:
        with suppress(OSError):
            if embeds(_address(stage)):
                return
        time.sleep(_POLL_S)
    raise ServerFault(
        f"HTTP does not answer {_LISTENS_S:g} s after gRPC; the server said:\n{stage.server.output[-2000:]}"
    )


CAMPAIGN = Campaign(
    "http",
    "hostile requests to Triton's HTTP frontend, under callers of gRPC",
    run,
    about="What ends tritonserver 2.51 here are known crashes of its HTTP frontend, mended in later releases "
    "(docs/security.md): they are counted, and are why HTTP is off unless `--http` is given. What is held against a "
    "target is the rest: callers of gRPC lose nothing, and the server is back. The counts are theirs; what was sent "
    "over HTTP stands in the second table.",
)
