"""Coverage-guided fuzzing of the project's own parsers; no server is needed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from tritonclip_chaos.campaign import Campaign, Context
from tritonclip_chaos.fuzzing.limits import MOST_CPU_S
from tritonclip_chaos.fuzzing.targets import TARGETS
from tritonclip_chaos.records import Record

SECONDS, SECONDS_SHORT = 20.0, 3.0
# To import and instrument, on a busy machine.
_STARTS_S = 120.0
MISSING = "the Python package atheris is not installed; it is in the extra `dev`, for Python 3.11 and later"


def run(context: Context) -> Iterator[Record]:
    """A record a parser."""
    for name in TARGETS:
        context.say(f"parsers: {name}")
        record = Record("parsers", name, context.seed)
        if find_spec("atheris") is None:
            record.skipped = MISSING
            yield record
            continue
        _fuzz(record, name, context.pick(SECONDS, SECONDS_SHORT))
        yield record


def _fuzz(record: Record, name: str, seconds: float) -> None:
    words = [sys.executable, "-m", "tritonclip_chaos.fuzzing", name]
    command = [*words, "--seconds", f"{seconds:g}", "--seed", str(record.seed)]
    begun_s = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, timeout=seconds + _STARTS_S, check=False)
        output, errors = done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")
    except subprocess.TimeoutExpired as error:
        output, errors = "", f"still busy {seconds + _STARTS_S:g} s after the start: {error}"
    outcome = _last_line(output)
    faults = outcome.get("faults", {})
    record.tried = int(outcome.get("executions", 0))
    record.answered = int(outcome.get("accepted", 0))
    record.failed = int(outcome.get("failures", 0))
    record.refused = record.tried - record.answered - record.failed
    record.worst_s = float(outcome.get("slowest_s", 0.0))
    record.figures["seconds"] = round(time.monotonic() - begun_s, 1)
    for fault in faults:
        record.example(fault)
    if not outcome:
        record.example(f"the fuzzer ended without a result: {errors[-300:]}")
    record.check("kinds of undocumented errors, wrong or slow results", len(faults), 0)
    record.check("CPU seconds of the slowest input", record.worst_s, MOST_CPU_S, unit="s")
    record.check("inputs tried", record.tried, 1, at_least=True)


def _last_line(output: str) -> dict[str, Any]:
    lines = [line for line in output.splitlines() if line.startswith("{")]
    found: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    return found


CAMPAIGN = Campaign(
    "parsers",
    "coverage-guided fuzzing (atheris) of our own parsers, without a server",
    run,
    own_server=False,
    about="Per parser: inputs that were read (answered), refused with a documented error, or failed. `image` is the "
    "look at an image's structure; `clean`, `mend` and `split` are what is done to texts, `mend` held against ftfy "
    "itself; `spec`, `manifest` and `pieces` are what the client and `tritonclip serve` read.",
)
