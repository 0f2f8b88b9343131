"""Runs locust in a process of its own, because gevent must patch Python before gRPC is imported."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritonclip_bench.errors import LoadError
from tritonclip_bench.processes import running

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
# Locust warns above this many new users a second.
MAX_SPAWN_RATE = 100
# For starting Python, drawing images and shutting down.
GRACE_S = 60
# For making the images in every worker.
READY_S = 120.0
# For writing what was measured until an interruption, raw samples too.
WRITING_S = 30.0
# How the reason begins for which a run is not whole, where somebody ended it.
INTERRUPTED = "interrupted"
# How often this process had samples written to a path.
_SAMPLES: dict[Path, int] = {}


@dataclass(frozen=True)
class LoadPlan:
    """Everything that one run of the load generator depends on.

    Attributes:
        address: gRPC, HOST:PORT.
        scenario: a name in `SCENARIOS`.
        users: each with one request in flight.
        duration_s, warmup_s, deadline_s: seconds; the warm-up is not measured.
        batch_size: images or texts in a request.
        labels: texts in a request of `clip`.
        seed: where the unique texts start.
        repeat_texts: let the server's response cache answer.
        images: a folder, or None for those of `image_set`.
        texts: a file, or None for those of `text_lengths`.
        rate: requests a second of an open loop; None for a closed one.
        metrics_url: of the server; None looks where they should be.
        image_set: a name in `IMAGE_SETS`; None for the default.
        text_lengths: a name in `TEXT_LENGTHS`; None for captions.
        shape: how the load changes, as `shapes.parse_shape` reads it; None: it does not.
        mix: own weights of the calls, as `scenarios.parse_mix` reads them.
        classifier: the name of the one that `classify` asks; None for the only one.
        processes: that the load generator is spread over.
        samples: where every request is written; a later run of this process adds a number to the name.
    """

    address: str
    scenario: str
    users: int
    duration_s: int
    warmup_s: int
    deadline_s: int
    batch_size: int
    labels: int
    seed: int
    repeat_texts: bool
    images: Path | None = None
    texts: Path | None = None
    rate: float | None = None
    metrics_url: str | None = None
    image_set: str | None = None
    text_lengths: str | None = None
    shape: str | None = None
    mix: str | None = None
    classifier: str | None = None
    processes: int = 1
    samples: Path | None = None

    def arguments(self) -> list[str]:
        """The plan as locust's command line."""
        options: dict[str, object | None] = {
            "--host": self.address,
            "--users": self.users,
            "--spawn-rate": min(self.users, MAX_SPAWN_RATE),
            "--scenario": self.scenario,
            "--measure": self.duration_s,
            "--warmup": self.warmup_s,
            "--deadline": self.deadline_s,
            "--batch-size": self.batch_size,
            "--labels": self.labels,
            "--seed": self.seed,
            "--images": self.images,
            "--texts": self.texts,
            "--rate": self.rate,
            "--metrics-url": self.metrics_url,
            "--image-set": self.image_set,
            "--text-lengths": self.text_lengths,
            "--shape": self.shape,
            "--mix": self.mix,
            "--classifier": self.classifier,
        }
        words = [word for name, value in options.items() if value is not None for word in (name, str(value))]
        return [*words, "--repeat-texts"] if self.repeat_texts else words

    @property
    def longest_s(self) -> float:
        """A run that takes longer than this hangs."""
        ramp_s = self.users / MAX_SPAWN_RATE
        workers_s = READY_S if self.processes > 1 else 0.0
        return ramp_s + workers_s + self.warmup_s + self.duration_s + self.deadline_s + GRACE_S


def run_load(
    plan: LoadPlan, *, progress: bool, locustfile: Path = LOCUSTFILE, more: Sequence[str] = ()
) -> dict[str, Any]:
    """Put the load on the server and return what was measured (`Recorder.results`).

    Where the server dies, or this process is interrupted (Ctrl-C, SIGTERM), what was measured until then comes back,
    and its "broken" says why it is not whole; after an interruption it begins with `INTERRUPTED`.

    Args:
        progress: show lines with the current rate on stderr.
        locustfile: takes the plan's options, and `more` of its own.

    Raises:
        LoadError: the load generator ended without a result, or hung.
        KeyboardInterrupt: interrupted before anything was measured.
    """
    with tempfile.TemporaryDirectory(prefix="tritonclip-bench-") as folder:
        results = Path(folder) / "results.json"
        command = [*_locust(locustfile, plan.processes), *plan.arguments(), "--results", str(results), *more]
        if plan.samples is not None:
            command += ["--samples", str(_unused(plan.samples))]
        with running([*command, "--progress"] if progress else command, subprocess.DEVNULL) as process:
            interrupted, status = _wait(process, plan.longest_s)
        if results.exists():
            measured: dict[str, Any] = json.loads(results.read_text(encoding="utf-8"))
            if interrupted and measured["broken"] is None:
                measured["broken"] = f"{INTERRUPTED} after {measured['window_s']:.1f} s"
            return measured
        if interrupted:
            raise KeyboardInterrupt
        raise LoadError(
            f"the load generator ended with status {status} and no result; its messages are above; "
            "run the same with plain locust to see more"
        )


def was_interrupted(broken: str | None) -> bool:
    """Whether a run's "broken" says that somebody ended it."""
    return (broken or "").startswith(INTERRUPTED)


def _unused(path: Path) -> Path:
    """`path` for this process's first run, with a number for each later one."""
    _SAMPLES[path] = number = _SAMPLES.get(path, 0) + 1
    name, dot, suffixes = path.name.partition(".")
    return path if number == 1 else path.with_name(f"{name}-{number}{dot}{suffixes}")


def _locust(locustfile: Path, processes: int) -> list[str]:
    # Without locust's log there is no second table beside ours; its warnings still reach stderr.
    quiet = ("--headless", "--skip-log-setup", "--exit-code-on-error", "0")
    command = [sys.executable, "-m", "locust", "-f", str(locustfile), *quiet]
    if processes == 1:
        return command
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ports = ("--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--master-port", port)
    return [*command, "--processes", str(processes), *ports]


def _wait(process: subprocess.Popen[str], timeout_s: float) -> tuple[bool, int]:
    """Whether this process was interrupted, which ends the other one too, and the other's exit status."""
    try:
        return False, process.wait(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise LoadError(
            f"the load generator did not end within {timeout_s:.0f} s; try fewer users or a shorter --duration"
        ) from None
    except KeyboardInterrupt:
        # From a terminal it was interrupted as well, and takes the second time for none.
        process.send_signal(signal.SIGINT)
        try:
            return True, process.wait(timeout=WRITING_S)
        except subprocess.TimeoutExpired:
            raise KeyboardInterrupt from None
