"""Runs the benchmark step by step, and keeps what was measured whatever ends it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tritonclip_bench.errors import BenchError
from tritonclip_bench.files import check_writable, write_json
from tritonclip_bench.gpu.device import open_device
from tritonclip_bench.gpu.peaks import measure_peaks
from tritonclip_bench.gpu.report import Record, default_path, render, to_json
from tritonclip_bench.gpu.runtimes import open_runtime
from tritonclip_bench.gpu.series import Effort, Series, run_series
from tritonclip_bench.gpu.served import Load, serve
from tritonclip_bench.gpu.subject import open_subject
from tritonclip_client.main import EXIT_INTERRUPTED
from tritonclip_export.engine.boundary import Toolkit
from tritonclip_serve.errors import ServeError


@dataclass(frozen=True)
class Plan:
    """What to measure; see `tritonclip bench gpu --help` for each."""

    device: str
    repository: Path | None
    architecture: str | None
    precision: str
    runtimes: Sequence[str]
    effort: Effort
    load: Load | None
    json: Path | None


def run(plan: Plan, open_toolkit: Callable[[], Toolkit]) -> int:
    """Measure, print, write; 0, 1 when something failed that should work, 130 after Ctrl-C.

    Raises:
        NoDeviceError: the device is not there.
        BenchError: the result could not be written.
        tritonclip_export.errors.ExportError: the repository or architecture cannot be measured.
    """
    device = open_device(plan.device)
    if plan.json is not None:
        check_writable(plan.json)
    with open_subject(plan.repository, plan.architecture, plan.precision) as subject:
        record = Record(device, subject, plan.effort)
        path = plan.json or default_path(device, f"{subject.title} {subject.spec.precision}")
        check_writable(path)
        try:
            _measure(plan, record, path, open_toolkit)
            record.complete = True
        except KeyboardInterrupt:
            print("interrupted; what was measured stays", file=sys.stderr)
        write_json(path, to_json(record))
        print(f"{render(record)}\n\nwritten: {path}")
    return int(record.failed) if record.complete else EXIT_INTERRUPTED


def _measure(plan: Plan, record: Record, path: Path, open_toolkit: Callable[[], Toolkit]) -> None:
    subject, device, effort = record.subject, record.device, plan.effort
    _say("measure the device's peaks")
    record.peaks = measure_peaks(device, effort.rounds, effort.seconds)
    for case in subject.cases:
        for name in plan.runtimes:
            _say(f"measure {case.name} in {name}")
            series = Series(case.name, case.tower, case.length, name)
            record.series.append(series)
            run_series(
                series,
                case,
                partial(open_runtime, name, subject, case, device, open_toolkit),
                subject.spec.precision,
                device,
                effort,
            )
            # A later crash of a driver takes the process with it.
            write_json(path, to_json(record))
    if plan.load is not None:
        _serve(plan.load, record, path)


def _serve(load: Load, record: Record, path: Path) -> None:
    log = path.with_suffix(".server.log").absolute()
    _say(f"serve, and put load on the server; its log: {log}")
    try:
        for row in serve(record.subject, record.device, load, log):
            record.served.append(row)
            write_json(path, to_json(record))
    except (BenchError, ServeError) as error:
        record.serve_note = str(error)
        return
    log.unlink(missing_ok=True)


def _say(what: str) -> None:
    print(f"{what} …", file=sys.stderr, flush=True)
