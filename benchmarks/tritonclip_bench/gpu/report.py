"""The result of `tritonclip bench gpu`: a JSON record, and the same as tables for people."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tritonclip_bench.gpu.device import Device
from tritonclip_bench.gpu.peaks import Peaks
from tritonclip_bench.gpu.roofline import Roof, roofline
from tritonclip_bench.gpu.series import Effort, Series
from tritonclip_bench.gpu.subject import Case, Subject
from tritonclip_bench.machine import describe_machine, describe_versions
from tritonclip_client.table import format_table

SCHEMA = 1
RESULTS = Path("benchmarks/results")


@dataclass
class Record:
    """What was measured so far; complete or not, it can be written and printed at any time."""

    device: Device
    subject: Subject
    effort: Effort
    peaks: Peaks | None = None
    series: list[Series] = field(default_factory=list)
    served: list[dict[str, Any]] = field(default_factory=list)
    serve_note: str | None = None
    complete: bool = False

    @property
    def peak(self) -> float | None:
        """Operations a second that the towers are held against."""
        precision = self.subject.spec.precision
        return None if self.peaks is None else self.peaks.of_precision(self.device.kind, precision)

    def roofs(self) -> list[Roof]:
        """Nothing where no peak of the towers' type was measured."""
        if self.peaks is None or self.peak is None:
            return []
        return roofline(self.subject.cases, self.series, self.peak, self.peaks.bytes_per_s.median)

    @property
    def failed(self) -> bool:
        """Whether something that should work did not."""
        return any(one.status == "failed" for one in self.series) or self.serve_note is not None


def to_json(record: Record) -> dict[str, Any]:
    """Everything that is needed to read the result later, and to repeat it; no host name, no path."""
    subject, spec = record.subject, record.subject.spec
    return {
        "schema": SCHEMA,
        "measured_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "complete": record.complete,
        "device": record.device.describe(),
        "machine": describe_machine(),
        "versions": describe_versions(),
        "model": {
            "name": subject.title,
            "architecture": spec.architecture,
            "precision": spec.precision,
            "fingerprint": spec.fingerprint,
            "flops_of_the_registry": subject.registry,
        },
        "effort": asdict(record.effort),
        "reference": subject.reference,
        "peaks": record.peaks and record.peaks.to_dict(),
        "towers": {case.name: _case(case) for case in subject.cases},
        "series": [_series(record, one) for one in record.series],
        "roofline": [asdict(roof) for roof in record.roofs()],
        "served": record.served,
        "serve_note": record.serve_note,
    }


def _case(case: Case) -> dict[str, Any]:
    return {
        "flops": case.flops,
        "weight_bytes": case.weight_bytes,
        "item_bytes": case.item_bytes,
        "probes": len(case.inputs),
    }


def _series(record: Record, series: Series) -> dict[str, Any]:
    shares = [shares_of_peak(record, series, point.items_per_s.median) for point in series.points]
    points = [{**asdict(point), **share} for point, share in zip(series.points, shares, strict=True)]
    return {**asdict(series), "points": points}


def shares_of_peak(record: Record, series: Series, items_per_s: float) -> dict[str, float | None]:
    """Model FLOPs utilization: operations an item x items a second / peak, measured and of the data sheet."""
    flops = next(case.flops for case in record.subject.cases if case.name == series.case) * items_per_s
    sheet = record.peaks and record.peaks.data_sheet
    of_sheet = flops / sheet["flops"] if sheet and record.subject.spec.precision == "float16" else None
    return {"mfu": flops / record.peak if record.peak else None, "mfu_of_data_sheet": of_sheet}


def render(record: Record) -> str:
    """The tables; of a run that was cut short those that there are."""
    parts = [_heading(record), _peaks(record), *_series_tables(record), _roofs(record), _served(record)]
    return "\n\n".join(part for part in parts if part)


def _heading(record: Record) -> str:
    spec = record.subject.spec
    cut = "" if record.complete else "; CUT SHORT"
    return f"{record.subject.title}, {spec.precision}, on {record.device.name}{cut}"


def _peaks(record: Record) -> str:
    if record.peaks is None:
        return ""
    rows = [
        (
            f"products in {dtype}, n = {_best_size(record.peaks, dtype)}",
            f"{peak.median / 1e12:.2f} TFLOP/s",
            _range(peak, 1e12),
        )
        for dtype, peak in record.peaks.flops.items()
    ]
    copies = record.peaks.bytes_per_s
    rows.append(("memory, read and written", f"{copies.median / 1e9:.1f} GB/s", _range(copies, 1e9)))
    sheet = record.peaks.data_sheet
    if sheet:
        promised = f"{sheet['flops'] / 1e12:.0f} TFLOP/s, {sheet['bytes_per_s'] / 1e9:.0f} GB/s"
        rows.append(("data sheet, 16 bits", promised, ""))
    return format_table(("peak of the device", "median", "lowest to highest"), rows)


def _best_size(peaks: Peaks, dtype: str) -> int:
    return max(peaks.sizes[dtype], key=lambda size: peaks.sizes[dtype][size].median)


def _range(spread: Any, unit: float) -> str:
    return f"{spread.lowest / unit:.2f} to {spread.highest / unit:.2f}"


def _series_tables(record: Record) -> list[str]:
    tables = []
    for case in record.subject.cases:
        series = [one for one in record.series if one.case == case.name]
        rows = [_point_row(record, one, point) for one in series for point in one.points]
        if rows:
            header = (f"{case.name}: {case.flops / 1e9:.3g} GFLOP", "batch", "items/s", "spread", "MFU", "cosine")
            tables.append(format_table(header, rows))
    return [*tables, "\n".join(_notes(record.series))]


def _notes(series: list[Series]) -> list[str]:
    """Why something is missing; what is true of several towers once."""
    towers: dict[tuple[str, str, str], list[str]] = {}
    for one in series:
        if one.note:
            towers.setdefault((one.runtime, one.status, one.note), []).append(one.case)
    return [f"{runtime}, {status} ({'; '.join(cases)}): {note}" for (runtime, status, note), cases in towers.items()]


def _point_row(record: Record, series: Series, point: Any) -> tuple[str, ...]:
    rate = point.items_per_s
    mfu = shares_of_peak(record, series, rate.median)["mfu"]
    spread = (rate.highest - rate.lowest) / rate.median
    share = "-" if mfu is None else f"{mfu:.1%}"
    return (series.runtime, str(point.batch), f"{rate.median:.1f}", f"{spread:.1%}", share, f"{point.cosine_min:.6f}")


def _roofs(record: Record) -> str:
    rows = [
        (
            roof.case,
            str(roof.batch),
            f"{roof.intensity:.1f}",
            roof.bound,
            f"{roof.attainable:.1f}",
            "-" if roof.reached is None else f"{roof.reached:.1f}",
            roof.runtime or "-",
            "-" if roof.share is None else f"{roof.share:.1%}",
        )
        for roof in record.roofs()
    ]
    header = ("roofline", "batch", "FLOP/byte", "bound", "attainable/s", "reached/s", "by", "share")
    return format_table(header, rows) if rows else ""


def _served(record: Record) -> str:
    header = ("served, users", "images/s", "p50 ms", "p99 ms", "CPU", "GPU", "failures", "limited by")
    rows = [
        (
            str(row["users"]),
            f"{row['items_per_s']:.1f}",
            *(f"{row['latency_ms'][key]:.1f}" if row["latency_ms"] else "-" for key in ("p50", "p99")),
            f"{row['machine_cpu_share']:.0%}",
            f"{row['gpu']['gpu_share']:.0%}" if row["gpu"] else "-",
            str(row["failures"]),
            row["limited_by"],
        )
        for row in record.served
    ]
    table = format_table(header, rows) if rows else ""
    return "\n".join(part for part in (table, f"served: {record.serve_note}" if record.serve_note else "") if part)


def default_path(device: Device, title: str) -> Path:
    """Below benchmarks/results/ of a checkout, else in the working directory."""
    slug = re.sub(r"[^a-z0-9]+", "-", f"{device.name} {title}".lower()).strip("-")
    return (RESULTS if RESULTS.is_dir() else Path()) / f"bench_gpu-{slug}.json"
