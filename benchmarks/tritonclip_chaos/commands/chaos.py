"""`tritonclip chaos`: faults, overload and hostile input against a server, and the page of what came of them."""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from pathlib import Path

from tritonclip_bench.cli_types import count
from tritonclip_serve.interrupts import raise_on_signals

HELP = "try a server with faults, overload and hostile input; write what came of it"
SEED = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `run` and `report`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    run_parser = actions.add_parser("run", help="run campaigns", description="Run campaigns against a server.")
    run_parser.add_argument(
        "campaigns", nargs="*", metavar="CAMPAIGN", help="which ones (default: all that take less than a soak)"
    )
    target = run_parser.add_mutually_exclusive_group()
    target.add_argument("--repository", type=Path, metavar="DIR", help="serve this one (default: the demo, exported)")
    target.add_argument("--address", metavar="HOST:PORT", help="a running server; nothing that damages it is run")
    run_parser.add_argument("--seed", type=int, default=SEED, help="decides everything that is drawn (%(default)d)")
    run_parser.add_argument("--minutes", type=_minutes, metavar="M", help="for each campaign; the length of a soak")
    run_parser.add_argument("--short", action="store_true", help="every case once, in seconds")
    run_parser.add_argument("--callers", type=count("callers"), default=16, help="clients at once (%(default)d)")
    run_parser.add_argument("--results", type=Path, metavar="DIR", help="where the JSON files go (default: nowhere)")
    report = actions.add_parser("report", help="write the page", description="Write the page from the JSON files.")
    report.add_argument("--results", type=Path, metavar="DIR", help="default: benchmarks/results/chaos")
    report.add_argument("--page", type=Path, metavar="FILE", help="default: docs/reliability.md")


def run(args: argparse.Namespace) -> int:
    """Run campaigns, 1 where a target was missed; or write the page."""
    return _report(args) if args.action == "report" else _run(args)


def _report(args: argparse.Namespace) -> int:
    from tritonclip_chaos.page import PAGE, write_page
    from tritonclip_chaos.runner import RESULTS

    write_page(args.results or RESULTS, args.page or PAGE)
    return 0


def _run(args: argparse.Namespace) -> int:
    from tritonclip_chaos.campaign import NAMES, ONLY_BY_NAME, Context, load
    from tritonclip_chaos.runner import run_campaigns
    from tritonclip_client import TruncationWarning

    names = args.campaigns or [name for name in NAMES if name not in ONLY_BY_NAME]
    campaigns = [load(name) for name in names]
    # Callers are threads, and what one of them turns off would be turned off for all.
    warnings.simplefilter("ignore", TruncationWarning)
    with raise_on_signals(), tempfile.TemporaryDirectory(prefix="chaos-") as name:
        folder = Path(name)
        repository = args.repository or (None if args.address else _demo(folder / "demo"))
        context = Context(
            args.seed,
            folder,
            repository,
            args.address,
            short=args.short,
            minutes=args.minutes,
            callers=args.callers,
            say=_say,
        )
        records = run_campaigns(context, campaigns, args.results)
    return 0 if all(record.met for record in records) else 1


def _demo(folder: Path) -> Path:
    from tritonclip_bench.demo import check_checkout, export_repository

    check_checkout()
    _say("exporting the demo")
    export_repository(folder)
    return folder


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes <= 24 * 60:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; give minutes, more than 0 and at most a day")
    return minutes
