"""What a server needs runs out for some seconds: shared memory, file handles, disk, memory of one model."""

from __future__ import annotations

import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import psutil

from tritonclip_chaos.campaign import Campaign, Context
from tritonclip_chaos.campaigns._faults import MODEL_LIMIT_S, SERVER_LIMIT_S, Stage
from tritonclip_chaos.records import Record
from tritonclip_chaos.served import tree
from tritonclip_chaos.served.sandbox import fill

FOR_S = 3.0
TIMES = 3
SHM_MB = 64
# Callers that connect anew for every call: it is new connections that need handles.
FRESH = 4


def run(context: Context) -> Iterator[Record]:
    """Each in turn, on one server; then what it left behind."""
    with Stage(context, "exhaustion", fresh=FRESH, shm_mb=SHM_MB) as stage:
        for case in (_shared_memory, _handles, _memory):
            yield case(stage)
        yield from _disk(stage)
        yield stage.closed()


def _shared_memory(stage: Stage) -> Record:
    record = stage.case("/dev/shm full")
    if stage.server.sandbox.shared_memory is None:
        return _skipped(record, stage)

    def act() -> None:
        folder = stage.server.sandbox.shared_memory
        assert folder is not None
        file = fill(folder)
        undo.append(lambda: file.unlink(missing_ok=True))

    undo: list[Callable[[], object]] = []
    return _for_a_while(stage, record, act, undo)


def _disk(stage: Stage) -> Iterator[Record]:
    """Full for as long as it lasts: what is killed has to come back without a log."""
    encoders = [name for name in _instances(stage) if name.startswith("image_encoder")]
    what = "disk full under the log, kill -9"
    if stage.server.sandbox.logs is None:
        yield _skipped(stage.case(what), stage)
        return
    times = stage.context.pick(TIMES, 1)
    for instance, limit_s in (*((name, MODEL_LIMIT_S) for name in encoders[:1]), ("tritonserver", SERVER_LIMIT_S)):
        file = fill(stage.server.sandbox.logs)
        yield stage.strike(what, instance, signal.SIGKILL, times, limit_s)
        file.unlink(missing_ok=True)


def _handles(stage: Stage) -> Record:
    """No new file can be opened by tritonserver, nor connection accepted."""

    def act() -> None:
        pid = tree.tritonserver(stage.server.pid)
        assert pid is not None
        limit = Limit(pid, resource.RLIMIT_NOFILE)
        undo.append(limit.lift)
        # All numbers below are in use by what stays open.
        limit.lower(tree.handles([psutil.Process(pid)]) // 2)

    undo: list[Callable[[], object]] = []
    return _for_a_while(stage, stage.case("no file handles in tritonserver"), act, undo)


def _memory(stage: Stage) -> Record:
    """The image encoder's process gets no more memory than it has."""
    record = stage.case("no memory in the image encoder")
    names = [name for name in _instances(stage) if name.startswith("image_encoder")]
    if not names:
        record.skipped = "the image encoder is no Python model here"
        return record

    def act() -> None:
        pid = stage.pid_of(names[0])
        assert pid is not None
        limit = Limit(pid, resource.RLIMIT_AS)
        undo.append(limit.lift)
        limit.lower(psutil.Process(pid).memory_info().vms)

    undo: list[Callable[[], object]] = []
    return _for_a_while(stage, record, act, undo)


def _instances(stage: Stage) -> list[str]:
    return [stub.instance for stub in stage.server.stubs()]


@dataclass
class Limit:
    """A resource limit of another process, lowered for a while; what it was bound to is left alone."""

    pid: int
    kind: int
    _before: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        self._before = resource.prlimit(self.pid, self.kind)

    def lower(self, soft: int) -> None:
        """Set the soft limit."""
        resource.prlimit(self.pid, self.kind, (soft, self._before[1]))

    def lift(self) -> None:
        """Set it back, if the process is still there."""
        with suppress(ProcessLookupError):
            resource.prlimit(self.pid, self.kind, self._before)


def _for_a_while(
    stage: Stage,
    record: Record,
    act: Callable[[], object],
    undo: list[Callable[[], object]],
) -> Record:
    for _ in range(stage.context.pick(TIMES, 1)):
        if not stage.fault(record, act, lambda: [undo.pop()() for _ in range(len(undo))], FOR_S):
            break
    return stage.judged(record, MODEL_LIMIT_S)


def _skipped(record: Record, stage: Stage) -> Record:
    record.skipped = stage.server.sandbox.reason
    return record


CAMPAIGN = Campaign(
    "exhaustion",
    "no shared memory, file handles, disk or memory for some seconds",
    run,
    about=f"Each lasts {FOR_S:g} s, and the outage counts from its end; a full disk under the log stays full. "
    f"/dev/shm ({SHM_MB} MB) and the log's folder are small file systems of the server's own; "
    f"{FRESH} of the callers connect anew for every call.",
)
