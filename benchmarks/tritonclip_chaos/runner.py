"""Runs campaigns one after the other, and writes what each found to a file of its own."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tritonclip_bench.files import write_json
from tritonclip_bench.machine import describe_machine, describe_versions
from tritonclip_chaos.campaign import Campaign, Context
from tritonclip_chaos.records import Record

RESULTS = Path(__file__).resolve().parents[1] / "results" / "chaos"
LOAD = os.getloadavg()[0]
NEEDS_ITS_OWN = "it damages the server, and --address names one that must survive"


def run_campaigns(context: Context, campaigns: Sequence[Campaign], results: Path | None) -> list[Record]:
    """Run them; each one's file is written as soon as it ends. Returns all records."""
    found = []
    for campaign in campaigns:
        began_s = time.monotonic()
        context.begin()
        records = []
        for record in _run(context, campaign):
            context.say(f"  {line(record)}")
            records.append(record)
        if results is not None:
            results.mkdir(parents=True, exist_ok=True)
            document = describe(context, campaign, records, time.monotonic() - began_s)
            write_json(results / f"{campaign.name}.json", document)
        found += records
    return found


def describe(context: Context, campaign: Campaign, records: Sequence[Record], seconds: float) -> dict[str, Any]:
    """One campaign's file."""
    return {
        "campaign": campaign.name,
        "help": campaign.help,
        "about": campaign.about,
        "seed": context.seed,
        "short": context.short,
        "callers": context.callers,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "commit": commit(),
        "seconds": round(seconds, 1),
        # Processes that wanted a core before anything was started: beside many, times tell little.
        "load": round(LOAD, 1),
        "machine": describe_machine(),
        "versions": describe_versions(),
        "records": [record.as_json() for record in records],
    }


def line(record: Record) -> str:
    """A record for people, while it runs."""
    if record.skipped:
        return f"{record.case}: skipped, {record.skipped}"
    counts = {name: getattr(record, name) for name in ("tried", "answered", "refused", "failed", "wrong", "lost")}
    told = ", ".join(f"{count} {name}" for name, count in counts.items() if count or name == "tried")
    missed = "; ".join(f"{one.what} {one.value:.3g}, not {one.limit:g}" for one in record.checks if not one.met)
    return f"{record.case}: {told}, outage {record.outage_s:.2f} s" + (f"; MISSED: {missed}" if missed else "")


def commit() -> str:
    """The commit that is checked out, with a star where files differ from it; "unknown" outside of a checkout."""
    here = Path(__file__).parent
    command = ["git", "describe", "--always", "--dirty=*", "--match="]
    try:
        told = subprocess.run(command, cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return told.stdout.strip()


def _run(context: Context, campaign: Campaign) -> Iterable[Record]:
    if campaign.own_server and context.address is not None:
        return [Record(campaign.name, "all", context.seed, skipped=NEEDS_ITS_OWN)]
    return campaign.run(context)
