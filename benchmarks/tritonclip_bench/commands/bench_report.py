"""`tritonclip bench report`: one HTML page, CSV or JSON from the records of benchmarks. Needs no server."""

from __future__ import annotations

import argparse
from pathlib import Path

from tritonclip_bench.errors import BenchError

HELP = "make one HTML page (and CSV, JSON) from the records that the other benchmarks wrote"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("records", nargs="+", type=Path, metavar="RECORD.json", help="what --json of a benchmark wrote")
    parser.add_argument("--html", type=Path, metavar="FILE", help="one page that needs nothing beside it")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="a row for every raw run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all runs as one record, which is read again")


def run(args: argparse.Namespace) -> int:
    """Read everything, then write everything."""
    from tritonclip_bench.files import check_writable, write_json
    from tritonclip_bench.records import NEWEST_SCHEMA, read_loads
    from tritonclip_bench.results.page import write_loads
    from tritonclip_bench.results.runs import write_csv

    wanted = [path for path in (args.html, args.csv, args.json) if path is not None]
    if not wanted:
        raise BenchError("nothing to write; give --html FILE, --csv FILE or --json FILE")
    for path in wanted:
        check_writable(path)
    loads = read_loads(args.records)
    if not loads:
        raise BenchError("the records hold no run; measure one with `tritonclip bench --json FILE`")
    if args.html is not None:
        write_loads(args.html, loads)
    if args.csv is not None:
        write_csv(args.csv, loads)
    if args.json is not None:
        write_json(args.json, {"schema": NEWEST_SCHEMA, "kind": "report", "label": None, "records": loads})
    runs = sum(len(load["repeats"]) for load in loads)
    print(f"{runs} runs of {len(loads)} settings: {', '.join(map(str, wanted))}")
    return 0
