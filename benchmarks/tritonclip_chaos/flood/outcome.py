"""Starts the generator, and reads what came of its requests."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tritonclip_chaos.calls import WrongAnswer, compare
from tritonclip_chaos.errors import ChaosError
from tritonclip_chaos.flood.generate import ANSWERED, FAILED, LOST, REFUSED
from tritonclip_chaos.records import Record
from tritonclip_client.results import Floats

# To start, to draw nothing, to wait for the last answers and to write.
OVERHEAD_S = 60.0


@dataclass(frozen=True)
class Source:
    """A flow's requests and what is right to answer.

    Attributes:
        path: of the requests' file.
        places: int [requests, N], which item each row of a request is.
        features: float32 [items, D].
    """

    path: Path
    places: npt.NDArray[np.int64]
    features: Floats

    @property
    def items(self) -> int:
        """Items in a request."""
        return int(self.places.shape[1])

    def expected(self, number: int) -> Floats:
        """What a request is to be answered with, float32 [N, D]."""
        rows: Floats = self.features[self.places[number]]
        return rows


@dataclass(frozen=True)
class FlowPlan:
    """One caller: a `rate` a second, or a closed loop of `width` at once."""

    source: Source
    caller: str
    rate: float = 0.0
    width: int = 0


@dataclass(frozen=True)
class Outcome:
    """What came of a flood, or of one flow of it.

    Attributes:
        rows: float64 [requests, 6], see `generate.COLUMNS`.
        unanswered: requests that never came to an end.
        wrong: answers, of those compared, that differ from their reference.
        errors: the commonest, with their numbers.
        generator_cores: that the generator took, on average; the server on the same machine lacked them.
    """

    rows: npt.NDArray[np.float64]
    unanswered: int
    wrong: int
    errors: Sequence[str]
    seconds: float
    generator_cores: float = 0.0

    def flow(self, place: int) -> Outcome:
        """Of one flow alone."""
        return Outcome(self.rows[self.rows[:, 0] == place], 0, 0, (), self.seconds)

    def count(self, status: int) -> int:
        """Requests with this end."""
        return int((self.rows[:, 5] == status).sum())

    @property
    def goodput(self) -> float:
        """Answers a second, within the deadline."""
        return self.count(ANSWERED) / self.seconds

    def seconds_of(self, status: int, quantile: float, *, from_due: bool) -> float:
        """A quantile of the times that requests with this end took, from when they were due, or were sent."""
        chosen = self.rows[self.rows[:, 5] == status]
        times = chosen[:, 4] - chosen[:, 2 if from_due else 3]
        return float(np.quantile(times, quantile, method="inverted_cdf")) if len(times) else 0.0

    @property
    def lag_p99_s(self) -> float:
        """How late requests were sent: the fault of the generator."""
        lags = self.rows[:, 3] - self.rows[:, 2]
        return float(np.quantile(lags, 0.99)) if len(lags) else 0.0

    def add_to(self, record: Record) -> None:
        """Count the requests into a record."""
        wrong = min(self.wrong, self.count(ANSWERED))
        record.tried += len(self.rows) + self.unanswered
        record.answered += self.count(ANSWERED) - wrong
        record.wrong += wrong
        record.refused += self.count(REFUSED)
        record.lost += self.count(LOST) + self.unanswered
        record.failed += self.count(FAILED)
        if len(self.rows):
            record.worst_s = max(record.worst_s, float((self.rows[:, 4] - self.rows[:, 3]).max()))
        for error in self.errors:
            record.example(error)


def flood(
    address: str,
    flows: Sequence[FlowPlan],
    seconds: float,
    deadline_s: float,
    seed: int,
    when_sent: Callable[[], object] = lambda: None,
) -> Outcome:
    """Send, in a process of its own, and compare what was kept of the answers.

    Args:
        when_sent: called when the last request is on its way, in this thread.

    Raises:
        ChaosError: the generator failed.
    """
    plan: dict[str, Any] = {
        "address": address,
        "seconds": seconds,
        "deadline_s": deadline_s,
        "seed": seed,
        "flows": [
            {"requests": str(one.source.path), "caller": one.caller, "rate": one.rate, "width": one.width}
            for one in flows
        ],
    }
    folder = flows[0].source.path.parent
    plan_path, result_path = folder / "plan.json", folder / "result.npz"
    plan_path.write_text(json.dumps(plan), encoding="utf-8")
    before_s = _children_s()
    _generate(plan_path, result_path, seconds + deadline_s + OVERHEAD_S, when_sent)
    cores = (_children_s() - before_s) / seconds
    with np.load(result_path) as result:
        kept = result["kept"]
        answers = np.split(result["embeddings"], np.cumsum(kept[:, 2])[:-1]) if len(kept) else []
        wrong = sum(
            not _is_right(answer, flows[place].source.expected(number))
            for (place, number, _), answer in zip(kept, answers, strict=True)
        )
        return Outcome(result["rows"], int(result["unanswered"]), wrong, result["errors"].tolist(), seconds, cores)


def _generate(plan: Path, result: Path, limit_s: float, when_sent: Callable[[], object]) -> None:
    command = [sys.executable, "-m", "tritonclip_chaos.flood.generate", str(plan), str(result)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        timer = threading.Timer(limit_s, process.kill)
        timer.start()
        try:
            assert process.stdout is not None
            # Also empty, when it ended before its time.
            if process.stdout.readline():
                when_sent()
            _, errors = process.communicate()
        except BaseException:
            process.kill()
            raise
        finally:
            timer.cancel()
    if process.returncode:
        raise ChaosError(
            f"the generator of the flood ended with status {process.returncode} (it may take {limit_s:g} s): "
            f"{errors[-1000:]}"
        )


def _children_s() -> float:
    """Seconds of a processor that all ended child processes took."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _is_right(answer: Floats, expected: Floats) -> bool:
    try:
        compare("embedding", answer, expected)
    except WrongAnswer:
        return False
    return True
