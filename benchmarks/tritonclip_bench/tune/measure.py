"""Measures candidates: a real server over a copy with their settings, the load, and the server's end."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tritonclip_bench.errors import BenchError, TrialFailedError
from tritonclip_bench.load.loadrun import LoadPlan, run_load, was_interrupted
from tritonclip_bench.load.planning import make_plan
from tritonclip_bench.server.endpoint import ServerInfo
from tritonclip_bench.traffic.workload import check
from tritonclip_bench.tune.copy import apply
from tritonclip_bench.tune.trials import Candidate, Measured
from tritonclip_export.errors import ExportError
from tritonclip_serve.errors import ModelLoadError, ServeError
from tritonclip_serve.interrupts import ignore_signals
from tritonclip_serve.server import TritonServer
from tritonclip_serve.verified import NONE


class Bench:
    """Where candidates are measured, one at a time.

    Args:
        copies: by export, see `Candidate`; changed at will.
        plan: the load; address and measured time are those of each run.
        options: what `plan` was made from.
        server: which tritonserver, see `tritonclip_serve.installation.find_server`.
        startup_s: how long one may take to be ready.
    """

    def __init__(
        self, copies: Mapping[str, Path], plan: LoadPlan, options: argparse.Namespace, *, server: str, startup_s: float
    ) -> None:
        self.plan = plan
        self.info: dict[Candidate, ServerInfo] = {}
        self._copies = copies
        self._options = options
        self._server = server
        self._startup_s = startup_s

    def measure(self, candidate: Candidate, seconds: int) -> Measured:
        """One run of the load on a server of its own.

        Raises:
            TrialFailedError: the settings cannot be had, the server does not start, or a request failed.
        """
        copy = self._copies[candidate.export]
        try:
            apply(copy, candidate.settings)
            with self._serving(copy) as address:
                self.info[candidate], classifier = check(self._options, address)
                plan = make_plan(self._options, address, classifier)
                results = run_load(replace(plan, duration_s=seconds, seed=self.plan.seed), progress=False)
                if was_interrupted(results.get("broken")):
                    raise KeyboardInterrupt
        except ModelLoadError as error:
            raise TrialFailedError(str(error.failures[0])) from error
        except (ServeError, ExportError, BenchError) as error:
            # Further lines name the log, which goes with the copy, and the copy is nobody's business.
            reason = str(error).splitlines()[0].replace(str(copy), "the repository")
            raise TrialFailedError(reason) from error
        return _judged(results)

    @contextmanager
    def _serving(self, repository: Path) -> Iterator[str]:
        # A copy with links in it, of what was compared before.
        ports = {"grpc_port": 0, "http_port": 0, "metrics_port": 0}
        options: dict[str, Any] = {**ports, "server": self._server, "verify": NONE}
        log_path = repository.with_name(f"{repository.name}.log")
        with TritonServer(repository, log_path=log_path, startup_timeout_s=self._startup_s, **options) as server:
            try:
                yield server.grpc_address
            except KeyboardInterrupt:
                # A second one must not break in on what the first one asked for.
                ignore_signals()
                raise


def _judged(results: dict[str, Any]) -> Measured:
    total = results["total"]
    if broken := results.get("broken"):
        raise TrialFailedError(str(broken))
    if total["failures"]:
        reason = next(iter(total["failure_reasons"]))
        asked = total["requests"] + total["failures"]
        raise TrialFailedError(f"{total['failures']} of {asked} requests failed: {reason}")
    if not total["requests"]:
        raise TrialFailedError("no request was answered in the measured time; give a longer --duration")
    return Measured(total["items_per_s"], total["latency_ms"]["p99"], results)
