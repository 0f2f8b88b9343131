"""The comparison as a record, with one load record for every side and pattern."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from baselines import result
from baselines.material import Material
from baselines.patterns import OURS
from baselines.result import Key
from baselines.sides import Load
from tritonclip_bench.errors import BenchError
from tritonclip_bench.results.repeats import Runs
from tritonclip_bench.results.report import make_report
from tritonclip_bench.server.endpoint import ServerInfo

# Nothing is sent there; it says that both ends are on this machine.
HERE = "127.0.0.1:0"


def comparison_record(
    args: argparse.Namespace,
    material: Material,
    server: ServerInfo,
    told: Mapping[str, Mapping[str, Any]],
    answers: Mapping[str, Any],
    runs: Mapping[Key, dict[str, Any]],
    loads: Mapping[Key, Load],
    broken: str | None,
) -> dict[str, Any]:
    """The record of kind "baselines" of what was measured so far.

    Args:
        server: tritonclip's.
        told: of each side what it is, its command and versions, and the reason where it was left out.
        answers: of each baseline how near its embeddings are to tritonclip's.
        runs, loads: what was measured, and how.
    """
    cells = dict.fromkeys(key[:3] for key in runs)
    return {
        **result.describe(),
        "checkpoint": material.name,
        "images": material.images.describe(),
        "rounds": args.rounds,
        "seconds": args.seconds,
        "sides": {side: {key: one[key] for key in ("what", "reason") if key in one} for side, one in told.items()},
        "commands": {side: one["command"] for side, one in told.items() if one.get("command")},
        "environments": {side: one["versions"] for side, one in told.items() if "versions" in one},
        "answers": dict(answers),
        "ratios": result.ratios(runs),
        "records": [_load_record(cell, material, server, told, runs, loads) for cell in cells],
        "broken": broken,
    }


def _load_record(
    cell: tuple[str, str, str],
    material: Material,
    server: ServerInfo,
    told: Mapping[str, Mapping[str, Any]],
    runs: Mapping[Key, dict[str, Any]],
    loads: Mapping[Key, Load],
) -> dict[str, Any]:
    side, scenario, pattern = cell
    keys = sorted(key for key in runs if key[:3] == cell)
    repeats = Runs([{**runs[key], "images": material.images.describe()} for key in keys])
    plan = loads[keys[0]].plan(HERE, None)
    record = make_report(
        plan, server, repeats.typical(), None, label=f"{side}, {scenario} {pattern}", repeats=repeats.results
    )
    if side != OURS:
        # The same weights, but not what tritonclip promises of them.
        spec = {name: record["server"]["spec"][name] for name in ("name", "architecture", "precision")}
        record["server"] |= {"triton": None, "software": told[side]["what"], "fingerprint": None, "spec": spec}
    throughput = [result.items_per_s(runs[key], side, loads[key].pattern) for key in keys]
    which = {"side": side, "scenario": scenario, "pattern": pattern, "rounds": [key[3] for key in keys]}
    return {**record, **which, "throughput": throughput}


def read(path: Path) -> dict[str, Any]:
    """A record of this kind.

    Raises:
        BenchError: there is none at `path`.
    """
    try:
        record: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BenchError(f"{path} cannot be read ({error}); give a result of this benchmark") from None
    if not isinstance(record, dict) or record.get("kind") != "baselines":
        raise BenchError(f"{path} is no result of this benchmark; give a JSON of kind baselines")
    return record
