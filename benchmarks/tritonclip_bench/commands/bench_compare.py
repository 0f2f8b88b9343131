"""`tritonclip bench compare`: whether one record is faster than another by more than the noise. Needs no server."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tritonclip_bench.cli_types import share

if TYPE_CHECKING:
    from tritonclip_bench.results.compare import Change, Comparison

HELP = "compare two records: the differences, and whether they are more than noise"
COLUMNS = ("", "before", "after", "difference", "95 % interval", "")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("before", type=Path, metavar="A.json", help="what --json of a benchmark wrote")
    parser.add_argument("after", type=Path, metavar="B.json", help="the same, of what is compared with A")
    parser.add_argument(
        "--fail-if-slower",
        type=share,
        metavar="SHARE",
        help="end with 1 where B is slower by this share, such as 5%%, and beyond the noise",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the comparison here")


def run(args: argparse.Namespace) -> int:
    """Compare and report; 1 where B is slower than --fail-if-slower allows, else 0."""
    from tritonclip_bench.files import check_writable, write_json
    from tritonclip_bench.records import read_loads
    from tritonclip_bench.results.compare import compare, pairs

    if args.json is not None:
        check_writable(args.json)
    sides = read_loads([args.before]), read_loads([args.after])
    found = [compare(*pair) for pair in pairs(*sides)]
    print("\n\n".join(_render(comparison) for comparison in found))
    if left := sum(map(len, sides)) - 2 * len(found):
        print(f"\n{left} runs of one side have no counterpart of the same load on the other, and are left out")
    if args.json is not None:
        write_json(args.json, {"schema": 2, "kind": "comparison", "comparisons": [one.to_dict() for one in found]})
    return _gate(found, args.fail_if_slower)


def _gate(found: Sequence[Comparison], by: float | None) -> int:
    if by is None:
        return 0
    slower = [comparison for comparison in found if comparison.is_slower(by)]
    for comparison in slower:
        print(f"\nslower by {by:.1%} or more, beyond the noise: {comparison.labels[1]}")
    return 1 if slower else 0


def _render(comparison: Comparison) -> str:
    from tritonclip_bench.results.compare import UNKNOWN
    from tritonclip_client.table import format_table

    rows = [_row(change) for change in comparison.changes if change.before is not None or change.after is not None]
    parts = [f"A: {comparison.labels[0]}\nB: {comparison.labels[1]}\n", format_table(COLUMNS, rows)]
    if any(change.verdict == UNKNOWN for change in comparison.changes):
        parts.append(
            "\nno verdict: a single run on a side tells nothing of the noise; measure both with --runs 3 or more"
        )
    return "\n".join([*parts, *(f"warning: {warning}" for warning in comparison.warnings)])


def _row(change: Change) -> tuple[str, ...]:
    from tritonclip_bench.results.page.numbers import NOTHING, column

    found = change.difference
    half = None if found is None else found.half_width
    low, high = (None, None) if found is None or half is None else (found.value - half, found.value + half)
    told = column([change.before, change.after, None if found is None else found.value, low, high])
    figures = [text.replace(NOTHING, "-") for text in told]
    relative = f" ({found.relative:+.1%})" if found and found.relative is not None else ""
    interval = "-" if low is None else f"{figures[3]} to {figures[4]}"
    return (change.metric, figures[0], figures[1], figures[2] + relative, interval, change.verdict)
