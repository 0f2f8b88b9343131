"""The server's side of a measured window: statistics, metrics, processors and GPUs, before and after."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import gevent
import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tritonclip_bench.errors import BenchError
from tritonclip_bench.server import cpu as server_cpu
from tritonclip_bench.server import metrics as server_metrics
from tritonclip_bench.server.endpoint import PROBE_TIMEOUT_S
from tritonclip_bench.server.metrics import Metrics
from tritonclip_bench.server.stages import Counters, outside_server_ms, read_counters, stages, with_own_counts

SAMPLE_EVERY_S = 1.0
SUCCESSES, FAILURES = "nv_inference_request_success", "nv_inference_request_failure"


@dataclass(frozen=True)
class Reading:
    """What the server had counted at one moment; None for what cannot be had."""

    counters: Counters | None
    metrics: Metrics | None
    cpu: Mapping[int, server_cpu.Used] = field(default_factory=dict)
    at_s: float = field(default_factory=time.perf_counter)


class ServerWatch:
    """Reads the server at both ends of a window, and its gauges in between.

    Args:
        stub: a connection to the server.
        address: its gRPC address, HOST:PORT.
        metrics_url: where its metrics are; None looks where they should be, and does without if they are not there.

    Raises:
        BenchError: there are no metrics at `metrics_url`, or those of another server.
    """

    def __init__(
        self, stub: service_pb2_grpc.GRPCInferenceServiceStub, address: str, metrics_url: str | None = None
    ) -> None:
        self._stub = stub
        self._process = server_cpu.find_server(address)
        self._url = self._checked(metrics_url) if metrics_url else self._found(address)
        self._ensembles = self._ask_for_ensembles()
        self._samples: list[Metrics] = []
        self._sampler: Any = None

    @property
    def metrics_url(self) -> str | None:
        """Where the metrics are read; None: there are none."""
        return self._url

    def begin(self) -> None:
        """Read before the first request that counts."""
        self._samples.clear()
        self._before = self._read()
        metrics = self._before.metrics
        # The processors of this machine are known better, by process.
        if metrics is not None and (self._process is None or server_metrics.has_gpus(metrics)):
            self._sampler = gevent.spawn(self._sample)

    def end(self) -> None:
        """Read after the last one."""
        if self._sampler is not None:
            self._sampler.kill(block=False)
        self._after = self._read()
        if not self._metrics_are_its_own():
            self._samples.clear()
            self._before, self._after = (replace(one, metrics=None) for one in (self._before, self._after))

    def results(self, seen: Mapping[str, Any]) -> dict[str, Any]:
        """What changed in between, for JSON.

        `stages`, whether there were `metrics`, `gpus`, and as far as they are known `rejected`, `server_cpu`,
        `server_cpu_cores`, `server_machine_cpu`, and in `client` the milliseconds outside of the server.

        Args:
            seen: what clients saw, as `Recorder.results` has it.
        """
        measured = stages(self._before.counters, self._after.counters)
        readings = [one for one in (self._before.metrics, *self._samples, self._after.metrics) if one is not None]
        if len(readings) > 1:
            measured = with_own_counts(measured, readings[0], readings[-1])
        rejected = self._rejected()
        for name, stage in measured.items():
            stage["ensemble"] = name in self._ensembles
            stage["rejected"] = rejected.get(name, 0)
        client = dict(seen.get("client") or {})
        # A request's time begins before it is made.
        known_ms = sum(client.get(key) or 0.0 for key in ("prepare_ms", "serialise_ms"))
        client["outside_server_ms"] = outside_server_ms(measured, seen["by_model"], known_ms)
        found: dict[str, Any] = {
            "stages": measured,
            "metrics": len(readings) > 1,
            "gpus": server_metrics.gpus(readings, seen["total"]["items"]) if len(readings) > 1 else [],
            "server_machine_cpu": server_metrics.machine_cpu(readings[1:]),
            "client": client,
            **self._cpu(),
        }
        if self._after.counters is not None:
            # An ensemble counts what one of its steps turned away once more.
            found["rejected"] = sum(count for name, count in rejected.items() if name not in self._ensembles)
        return found

    def _metrics_are_its_own(self) -> bool:
        """Whether the metrics counted the window's requests too: two servers that nobody asked yet look the same."""
        before, after = self._before, self._after
        if not (before.counters and after.counters and before.metrics and after.metrics):
            return True
        asked = sum(stage["requests"] for stage in stages(before.counters, after.counters).values())
        counted = sum(server_metrics.change(before.metrics, after.metrics, SUCCESSES, "model").values())
        return counted >= asked / 2

    def _read(self) -> Reading:
        cpu = server_cpu.used(self._process) if self._process is not None else {}
        return Reading(read_counters(self._stub), self._fetch(self._url), cpu)

    def _fetch(self, url: str | None) -> Metrics | None:
        try:
            return None if url is None else server_metrics.fetch(url)
        except BenchError:
            return None

    def _sample(self) -> None:
        while True:
            gevent.sleep(SAMPLE_EVERY_S)
            if (metrics := self._fetch(self._url)) is not None:
                self._samples.append(metrics)

    def _cpu(self) -> dict[str, Any]:
        if not (self._before.cpu and self._after.cpu):
            return {"server_cpu": None, "server_cpu_cores": None}
        used = server_cpu.cores(self._before.cpu, self._after.cpu, self._after.at_s - self._before.at_s)
        return {"server_cpu": used, "server_cpu_cores": sum(used.values())}

    def _rejected(self) -> dict[str, int]:
        """By model the requests that it turned away; without metrics, those that failed for whatever reason."""
        before, after = self._before, self._after
        if before.metrics is not None and after.metrics is not None:
            found = server_metrics.change(before.metrics, after.metrics, FAILURES, "model", reason="REJECTED")
            return {name: round(count) for name, count in found.items()}
        measured = stages(before.counters, after.counters)
        return {name: round(stage["failures"]) for name, stage in measured.items()}

    def _found(self, address: str) -> str | None:
        """Where the metrics should be, if they are there and this server's."""
        host = address.removeprefix("dns:///").rpartition(":")[0]
        port = server_cpu.flag(self._process, "metrics-port") if self._process is not None else None
        url = server_metrics.default_url(host, int(port or server_metrics.DEFAULT_PORT))
        try:
            return self._checked(url)
        except BenchError:
            return None

    def _checked(self, url: str) -> str:
        """`url`, if what is there counts the same requests as the server does."""
        before = read_counters(self._stub)
        counted = server_metrics.by_label(server_metrics.fetch(url), SUCCESSES, "model")
        after = read_counters(self._stub)
        if before is None or after is None:
            return url
        same = counted.keys() == after.keys() and all(
            before.get(name, {}).get("success_count", 0) <= count <= after[name]["success_count"]
            for name, count in counted.items()
        )
        if not same:
            raise BenchError(
                f"--metrics-url {url} has the metrics of another server; give those of the one at --address"
            )
        return url

    def _ask_for_ensembles(self) -> frozenset[str]:
        try:
            answers = [
                self._stub.ModelMetadata(service_pb2.ModelMetadataRequest(name=name), timeout=PROBE_TIMEOUT_S)
                for name in read_counters(self._stub) or {}
            ]
        except grpc.RpcError:
            return frozenset()
        return frozenset(answer.name for answer in answers if answer.platform == "ensemble")
