"""`tritonclip bench tune`: try settings of a repository on this machine, and write the best back."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritonclip_bench.cli_types import count, positive_number, positive_seconds
from tritonclip_bench.traffic.options import add_result_arguments, add_workload_arguments
from tritonclip_bench.tune.search_space import TUNABLE, parse_vary
from tritonclip_serve.installation import SERVER_KINDS

if TYPE_CHECKING:
    from tritonclip_bench.tune.exports import Export
    from tritonclip_bench.tune.report import Outcome
    from tritonclip_bench.tune.search import Phase, Sweep
    from tritonclip_bench.tune.trials import Candidate

HELP = "try how a model repository is best served on this machine: batches, instances, threads, delays, precisions"
STARTUP_S = 300


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("repository", metavar="DIR", type=Path, help="what `tritonclip export` wrote")
    parser.add_argument(
        "--repository",
        dest="others",
        action="append",
        default=[],
        type=Path,
        metavar="DIR",
        help="the same model in another precision: compared at the end, with the best settings, and reported",
    )
    parser.add_argument(
        "--vary",
        action="append",
        default=[],
        type=parse_vary,
        metavar="NAME=V,V",
        help="try these values, in every combination with those of further --vary; default: one setting after the "
        f"other, by this machine's cores. NAME: {', '.join(TUNABLE)}",
    )
    parser.add_argument("--write", action="store_true", help="write the best settings, as `tritonclip configure` does")
    parser.add_argument("--users", type=count("users"), default=16, help="requests in flight at once (16)")
    parser.add_argument(
        "--duration", type=positive_seconds, default=10, metavar="TIME", help="measured time of the shortest runs (10s)"
    )
    parser.add_argument("--rounds", type=count("rounds"), default=8, help="of the finalists, at most (8)")
    parser.add_argument("--budget", type=positive_seconds, default=1800, metavar="TIME", help="of everything (30m)")
    parser.add_argument(
        "--p99-ms", type=positive_number, metavar="MS", help="the best throughput of what answers 99 of 100 within this"
    )
    parser.add_argument("--server", choices=SERVER_KINDS, default="auto", help="which tritonserver, as of `serve`")
    add_workload_arguments(parser)
    add_result_arguments(parser)
    parser.add_argument("--label", metavar="NAME", help="what tables and pages call the result")


def run(args: argparse.Namespace) -> int:
    """Sweep and report; 1 where the objective is missed or the budget too short to tell, else 0."""
    from tritonclip_bench.load.planning import check_options, make_plan
    from tritonclip_bench.traffic.workload import check_files
    from tritonclip_bench.tune.copy import copy, workspace
    from tritonclip_bench.tune.exports import read_exports
    from tritonclip_bench.tune.measure import Bench
    from tritonclip_bench.tune.report import Outcome
    from tritonclip_serve.interrupts import raise_on_signals

    args.rate = None
    price = check_options(args)
    check_files(args)
    exports = read_exports(args.repository, args.others)
    if args.write and not all(os.access(path, os.W_OK) for path in (args.repository, args.repository.resolve().parent)):
        from tritonclip_bench.errors import BenchError

        raise BenchError(f"{args.repository} or the folder it is in cannot be written; leave out --write, or allow it")
    with raise_on_signals(), ExitStack() as stack:
        varied, phases, sizes = _phases(args, exports[0])
        folder = stack.enter_context(workspace(args.repository.resolve()))
        copies = {one.name: copy(one.repository, folder / f"export_{n}") for n, one in enumerate(exports)}
        bench = Bench(
            copies, make_plan(args, "127.0.0.1:0", args.classifier or ""), args, server=args.server, startup_s=STARTUP_S
        )
        sweep = _sweep(args, exports, sizes, bench)
        outcome = Outcome(sweep, bench, exports, varied, price, args.label)
        _go(args, outcome, phases)
    return 0 if outcome.verdict and outcome.verdict.kind in ("better", "as good") else 1


def _phases(args: argparse.Namespace, own: Export) -> tuple[dict[str, Any], list[Phase], list[int]]:
    """What is varied, in which phases, and how many candidates each has."""
    from tritonclip_bench.errors import BenchError
    from tritonclip_bench.traffic.scenarios import traffic
    from tritonclip_bench.tune.search_space import default_values, grid, neighbours
    from tritonclip_bench.tune.trials import Candidate

    varied: dict[str, Any] = dict(args.vary)
    if varied:
        candidates = [Candidate(settings) for settings in grid(own.settings, varied)]
        phases: list[Phase] = [("grid", lambda champion: candidates)]
        sizes = [len(candidates)]
    else:
        cores = len(os.sched_getaffinity(0))
        varied = dict(default_values(own.settings, traffic(args).weights, cores, _backends(args.server)))
        sizes = [len(values) for values in varied.values()]

        def phase(name: str, values: Sequence[Any]) -> Phase:
            return name, lambda champion: [Candidate(one) for one in neighbours(champion.settings, name, values)]

        phases = [phase(name, values) for name, values in varied.items()]
    if not any(sizes) and not args.others:
        raise BenchError("nothing to try: the values are the present ones; give others with --vary NAME=VALUE,VALUE")
    return varied, phases, sizes


def _backends(server: str) -> frozenset[str]:
    import tempfile

    from tritonclip_serve.installation import find_server

    with tempfile.TemporaryDirectory(prefix="tritonclip-") as folder:
        return find_server(server, Path(folder)).backends or frozenset()


def _sweep(args: argparse.Namespace, exports: Sequence[Export], sizes: Sequence[int], bench: Any) -> Sweep:
    """The sweep that was asked for, told before it starts.

    Raises:
        BenchError: the budget is too short for any result.
    """
    from tritonclip_bench.errors import BenchError
    from tritonclip_bench.tune.search import Sweep
    from tritonclip_bench.tune.trials import Candidate, Effort, predicted

    effort = Effort(args.duration, args.warmup, args.rounds, args.budget, args.p99_ms or math.inf)
    runs, most_s, least_s = predicted(sizes, effort, len(exports) - 1)
    if least_s > args.budget:
        raise BenchError(
            f"--budget {args.budget}s given; this sweep takes at least {least_s:.0f}s (a server is started for every "
            "run); give more, or a shorter --duration"
        )
    short = ""
    if most_s > args.budget:
        short = f"; the budget of {args.budget / 60:.0f} min ends it earlier: what comes last is then not tried"
    _say(f"at most {runs} runs of {most_s / runs:.0f} s, about {most_s / 60:.0f} min{short}")
    return Sweep(Candidate(exports[0].settings), bench.measure, effort, exports=len(exports) - 1)


def _go(args: argparse.Namespace, outcome: Outcome, phases: Sequence[Phase]) -> None:
    """Fill `outcome`; whatever happens, what was measured is written and printed."""
    from tritonclip_bench.files import saving
    from tritonclip_bench.load.loadrun import INTERRUPTED
    from tritonclip_bench.results.page import save_page
    from tritonclip_bench.tune.report import news, record, render

    save = saving(args.json)

    def keep() -> None:
        told = record(outcome)
        if told is not None:
            save(told)

    def after(trial: Any) -> None:
        _say(f"  {outcome.sweep.spent_s / 60:5.1f} min  {news(outcome, trial)}")
        keep()

    outcome.sweep.after = after
    try:
        _search(args, outcome, phases)
    except BaseException as error:
        outcome.broken = INTERRUPTED if isinstance(error, KeyboardInterrupt) else str(error)
        raise
    finally:
        keep()
        if outcome.sweep.trials:
            print(render(outcome))
        if (told := record(outcome)) is not None:
            save_page(args.html, told)


def _search(args: argparse.Namespace, outcome: Outcome, phases: Sequence[Phase]) -> None:
    from tritonclip_bench.tune.report import EXPORTS
    from tritonclip_bench.tune.trials import Candidate

    sweep, present = outcome.sweep, outcome.present
    finalists = sweep.search(phases)
    sweep.compare(finalists, present)
    outcome.verdict = verdict = sweep.verdict(finalists, present)
    reference: Candidate = verdict.best or present
    others = [Candidate(reference.settings, export.name) for export in outcome.exports[1:]]
    if others:
        outcome.reference = reference
        sweep.compare(others, reference, EXPORTS)
    if args.write and verdict.best is not None:
        _write(args.repository, present, verdict.best)
        outcome.written = True


def _write(repository: Path, present: Candidate, best: Candidate) -> None:
    """As `tritonclip configure`, unless somebody else did meanwhile."""
    from tritonclip_bench.errors import BenchError
    from tritonclip_bench.tune.search_space import changes
    from tritonclip_export.repository.configure import configure, settings_of
    from tritonclip_export.repository.manifest import read_manifest

    if settings_of(repository, read_manifest(repository)) != present.settings:
        raise BenchError(f"{repository} was changed since the sweep began; nothing was written, tune it again")
    configure(repository, {name: getattr(best.settings, name) for name in changes(best.settings, present.settings)})


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
