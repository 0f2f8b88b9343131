"""A model that dies and cannot be loaded at once: its file is away for a while, or its new process is slow."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tritonclip_chaos.campaign import Campaign, Context
from tritonclip_chaos.campaigns._faults import PATIENCE_S, SERVER_LIMIT_S, Stage
from tritonclip_chaos.records import Record

AWAY_S, SLOW_S = 3.0, 2.0
TIMES = 3


def run(context: Context) -> Iterator[Record]:
    """On a copy of the repository, or on the copy of that which the server makes for itself."""
    assert context.repository is not None
    copy = context.folder / "reloaded"
    shutil.copytree(context.repository, copy)
    with Stage(context, "reload", repository=copy) as stage:
        encoder = next((stub for stub in stage.server.stubs() if stub.model.startswith("image_encoder")), None)
        if encoder is None:
            record = stage.case("all")
            record.skipped = "the image encoder is no Python model here"
            yield record
            return
        yield _failing(stage, encoder.instance)
        yield _slow(stage, encoder.instance)
        yield stage.closed()


def _failing(stage: Stage, instance: str) -> Record:
    """The model's weights are away when it is to be loaded again."""
    record = stage.case(f"{instance} killed, its weights away for {AWAY_S:g} s")
    hidden: list[tuple[Path, Path]] = []

    def act() -> None:
        folder = next(stub.folder for stub in stage.server.stubs() if stub.instance == instance)
        # Into a folder of the same file system, where the server does not look.
        away = folder.parents[1] / "away"
        away.mkdir(exist_ok=True)
        hidden.extend((file, away / file.name) for file in sorted(folder.glob("*.onnx*")))
        for file, place in hidden:
            file.rename(place)
        stage.signal(instance, signal.SIGKILL)

    def undo() -> None:
        # A tritonserver that ended meanwhile has a new copy of the repository.
        with suppress(FileNotFoundError):
            for file, place in hidden:
                place.rename(file)
            hidden[0][1].parent.rmdir()
        hidden.clear()

    for _ in range(stage.context.pick(TIMES, 1)):
        if not stage.fault(record, act, undo, AWAY_S, instance=instance):
            break
    return stage.judged(record, SERVER_LIMIT_S)


def _slow(stage: Stage, instance: str) -> Record:
    """The process that is started instead does nothing for a while."""
    record = stage.case(f"{instance} killed, its next process paused for {SLOW_S:g} s")

    def act() -> None:
        before = stage.pid_of(instance)
        stage.signal(instance, signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            pid = stage.pid_of(instance)
            if pid not in (None, before):
                assert pid is not None
                _pause(pid, SLOW_S)
                return
            time.sleep(0.02)
        record.example("no new process was started")

    for _ in range(stage.context.pick(TIMES, 1)):
        if not stage.fault(record, act, instance=None):
            break
    return stage.judged(record, SERVER_LIMIT_S)


def _pause(pid: int, seconds: float) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(pid, signal.SIGCONT)


CAMPAIGN = Campaign(
    "reload",
    "a model that dies and cannot be loaded again at once",
    run,
    about="The outage counts from when the model's file is back, or its process goes on: who supervises tries "
    "again with growing pauses, so that it is held against the server's limit.",
)
