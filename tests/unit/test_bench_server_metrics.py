"""Triton's metrics as text, and what a window makes of them."""

from __future__ import annotations

import os
import socket
import threading
from types import SimpleNamespace

import psutil
import pytest

from tritonclip_bench.errors import BenchError
from tritonclip_bench.server import cpu as server_cpu
from tritonclip_bench.server import metrics as server_metrics
from tritonclip_bench.server import watch as server_watch
from tritonclip_bench.server.cpu import Used
from tritonclip_bench.server.stages import outside_server_ms, stages, with_late_answers, with_own_counts
from tritonclip_bench.server.stages_text import ASCII, BLOCKS, WIDTH, bar, render

# As Triton's documentation describes its metrics of a GPU; no GPU made these numbers.
GPU = """\
# HELP nv_gpu_utilization GPU utilization rate [0.0 - 1.0)
# TYPE nv_gpu_utilization gauge
nv_gpu_utilization{{gpu_uuid="GPU-b"}} {busy}
nv_gpu_utilization{{gpu_uuid="GPU-a"}} 0
nv_gpu_memory_used_bytes{{gpu_uuid="GPU-b"}} 1073741824.000000
nv_gpu_power_usage{{gpu_uuid="GPU-b"}} {watts}
nv_energy_consumption{{gpu_uuid="GPU-b"}} {joules}
nv_cpu_utilization {busy}
"""


def test_labels_are_read_with_everything_that_may_stand_in_them() -> None:
    text = '# HELP a b\n\na{x="1,2",y="q\\"u}\\\\n\\n"} 3.5 1700000000000\na 2\nb{x="1"} NaN\nc{} +Inf\nd 1e3\n'
    found = server_metrics.parse(text)
    assert found == {"a": [({"x": "1,2", "y": 'q"u}\\n\n'}, 3.5), ({}, 2.0)], "d": [({}, 1000.0)]}


@pytest.mark.parametrize("text", ["<html>", "a{x=1 2", "a", "a b"])
def test_what_is_no_metrics_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="invalid metric name|could not convert"):
        server_metrics.parse(text)


def test_counters_are_found_without_their_suffix_which_the_parser_adds_where_there_is_none() -> None:
    text = "# TYPE nv_count counter\nnv_count 3\n# TYPE own_total counter\nown_total 4\nuntyped_total 5\n"
    found = server_metrics.parse(text)
    assert found == {"nv_count": [({}, 3.0)], "own": [({}, 4.0)], "untyped": [({}, 5.0)]}


def test_only_what_went_up_in_between_counts_and_a_counter_may_begin_anew() -> None:
    line = 'f{{model="{}",reason="{}",version="{}"}} {}\n'
    before = line.format("a", "REJECTED", 1, 5) + line.format("b", "REJECTED", 1, 100)
    after = line.format("a", "REJECTED", 1, 7) + line.format("a", "REJECTED", 2, 1) + line.format("a", "OTHER", 1, 50)
    after += line.format("b", "REJECTED", 1, 4) + line.format("c", "REJECTED", 1, 9)
    readings = [server_metrics.parse(text) for text in (before, after)]
    assert server_metrics.change(*readings, "f", "model", reason="REJECTED") == {"a": 3, "b": 4, "c": 9}


def test_gpus_have_means_of_their_gauges_and_the_energy_of_an_item() -> None:
    values = [(0.5, 60, 1000), (1.0, 80, 1100), (0.9, 70, 1250)]
    readings = [server_metrics.parse(GPU.format(busy=b, watts=w, joules=j)) for b, w, j in values]
    assert server_metrics.has_gpus(readings[0])
    assert not server_metrics.has_gpus(server_metrics.parse("nv_cpu_utilization 0.5"))
    first, second = server_metrics.gpus(readings, 500)
    assert first == {"index": 0, "utilization": 0}
    assert second == pytest.approx(
        {"index": 1, "utilization": 0.8, "memory_bytes": 2**30, "power_w": 70, "joules": 250, "joules_per_item": 0.5}
    )
    assert server_metrics.machine_cpu(readings) == pytest.approx(0.8)
    assert server_metrics.gpus([{}, {}], 500) == []
    assert server_metrics.machine_cpu([{}]) is None


def test_an_address_without_metrics_is_an_error_that_says_what_to_give() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = server_metrics.default_url("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(BenchError, match=r"gives no metrics \(.*\); give the address of Triton's metrics"):
            server_metrics.fetch(url)
    with pytest.raises(BenchError, match="gives no metrics"):
        server_metrics.fetch("nonsense")


def test_what_speaks_another_protocol_gives_no_metrics() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1024)
                # As a gRPC port greets: a frame of HTTP/2.
                connection.sendall(b"\x00\x00\x00\x04\x00\x00\x00\x00\x00")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(BenchError, match="gives no metrics"):
            server_metrics.fetch(server_metrics.default_url("127.0.0.1", listener.getsockname()[1]))
        thread.join()
    with pytest.raises(BenchError, match="gives no metrics"):
        server_metrics.fetch("http://127.0.0.1:port/metrics")


def test_counts_of_a_server_that_began_anew_are_not_negative() -> None:
    parts = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit")

    def counters(requests: int, ms: int) -> dict[str, int]:
        zeros = {f"{part}_{unit}": 0 for part in parts for unit in ("count", "ns")}
        return zeros | {"success_count": requests, "success_ns": ms * 1_000_000, "items": requests, "batches": requests}

    # The time alone would be taken for that of two requests more.
    before, after = {"a": counters(4, 900), "b": counters(1, 10)}, {"a": counters(6, 60), "b": counters(3, 50)}
    measured = stages(before, after)
    assert (measured["a"]["requests"], measured["a"]["total_ms"]) == (6, pytest.approx(10))
    assert (measured["b"]["requests"], measured["b"]["total_ms"]) == (2, pytest.approx(20))


@pytest.mark.parametrize(("counted", "same"), [({"a": 5.0}, True), ({"a": 9.0}, False), ({"a": 5.0, "b": 0.0}, False)])
def test_metrics_that_count_other_requests_are_another_servers(
    counted: dict[str, float], same: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "".join(f'nv_inference_request_success{{model="{name}"}} {value}\n' for name, value in counted.items())
    readings = iter([4, 6, 6])
    monkeypatch.setattr(server_watch.server_cpu, "find_server", lambda _: None)
    monkeypatch.setattr(server_metrics, "fetch", lambda _: server_metrics.parse(text))
    monkeypatch.setattr(server_watch, "read_counters", lambda _: {"a": {"success_count": next(readings)}})
    stub = SimpleNamespace(ModelMetadata=lambda _, timeout: SimpleNamespace(name="a", platform="ensemble"))
    found = server_watch.ServerWatch(stub, "192.0.2.1:8001")
    assert found.metrics_url == ("http://192.0.2.1:8002/metrics" if same else None)
    if not same:
        readings = iter([4, 6])
        with pytest.raises(BenchError, match="has the metrics of another server"):
            server_watch.ServerWatch(stub, "192.0.2.1:8001", "http://192.0.2.1:9/metrics")


@pytest.mark.parametrize(("counts", "same"), [((0, 0, 7), True), ((0, 0, 0), False)])
def test_a_server_that_stayed_idle_is_another_one(
    counts: tuple[int, ...], same: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anybody asked, the metrics of two fresh servers cannot be told apart."""
    texts = iter(f'nv_inference_request_success{{model="a"}} {count}\n' for count in counts)
    answers = iter([0, 0, 0, 0, 7])
    monkeypatch.setattr(server_watch.server_cpu, "find_server", lambda _: None)
    monkeypatch.setattr(server_metrics, "fetch", lambda _: server_metrics.parse(next(texts)))
    monkeypatch.setattr(server_watch, "read_counters", lambda _: {"a": {"success_count": next(answers)}})
    monkeypatch.setattr(server_watch, "stages", lambda before, after: {"a": {**STAGE, "failures": 0, "requests": 7}})
    stub = SimpleNamespace(ModelMetadata=lambda _, timeout: SimpleNamespace(name="a", platform="ensemble"))
    watch = server_watch.ServerWatch(stub, "192.0.2.1:8001")
    watch.begin()
    watch.end()
    assert watch.results({"by_model": {}, "total": {"items": 7}})["metrics"] is same


def test_a_server_is_one_process_that_listens_here_and_is_a_tritonserver(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        assert server_cpu.find_server(address) is None
        monkeypatch.setattr(server_cpu, "SERVER", psutil.Process().name())
        found = server_cpu.find_server(address)
        assert found is not None
        assert found.pid == os.getpid()
        assert server_cpu.used(found)[found.pid].seconds > 0
    for elsewhere in (address, "192.0.2.1:8001", "nowhere.invalid:8001", "unix:/tmp/socket"):
        assert server_cpu.find_server(elsewhere) is None


def test_who_may_not_see_other_processes_gets_no_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> None:
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil, "net_connections", denied)
    assert server_cpu.find_server("127.0.0.1:8001") is None


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--metrics-port=1", "--metrics-port=2"], "2"),
        (["--metrics-port", "3"], "3"),
        (["--metrics-portal=4"], None),
        ([], None),
    ],
)
def test_a_flag_is_the_last_one_given(words: list[str], value: str | None) -> None:
    process = SimpleNamespace(cmdline=lambda: ["tritonserver", *words])
    assert server_cpu.flag(process, "metrics-port") == value  # type: ignore[arg-type]


def test_cores_are_by_model_and_a_process_that_came_later_counts() -> None:
    before = {1: Used("tritonserver", 10.0), 2: Used("preprocess", 1.0)}
    after = {1: Used("tritonserver", 11.0), 2: Used("preprocess", 5.0), 3: Used("preprocess", 2.0)}
    assert server_cpu.cores(before, after, 4.0) == {"tritonserver": 0.25, "preprocess": 1.5}


STAGE = {"requests": 10, "queue_ms": 1.0, "input_ms": 0.5, "compute_ms": 0.1, "output_ms": 0.2, "total_ms": 1.8}


def own(model: str, prefix: str, **counts: float) -> str:
    return "".join(f'{prefix}{name}_total{{model="{model}",version="1"}} {count}\n' for name, count in counts.items())


def test_an_encoders_own_counts_take_the_place_of_what_triton_cannot_see() -> None:
    encoder = dict.fromkeys(("requests", "items", "batches", "queue_seconds", "compute_seconds"), 7)
    change = {"requests": 10, "items": 40, "batches": 8, "queue_seconds": 0.02, "compute_seconds": 0.3}
    images = {"images": 40, "decode_seconds": 0.08, "resize_seconds": 0.02}
    before = own("image_encoder", "tritonclip_encoder_", **encoder)
    after = own("image_encoder", "tritonclip_encoder_", **{key: 7 + value for key, value in change.items()})
    after += own("preprocess", "tritonclip_preprocess_", **images)
    given = {name: dict(STAGE) for name in ("image_encoder", "preprocess", "text_encoder", "embed_image")}
    made = with_own_counts(given, *(server_metrics.parse(text) for text in (before, after)))
    assert made["image_encoder"] == STAGE | {
        "mean_batch": 5.0,
        "queue_ms": pytest.approx(3.0),
        "compute_ms": pytest.approx(30.0),
        "output_ms": 0.0,
        "total_ms": pytest.approx(33.5),
        "own_counts": True,
    }
    assert made["preprocess"] == STAGE | {"decode_ms_per_item": 2.0, "resize_ms_per_item": 0.5}
    assert made["text_encoder"] == STAGE
    # No estimate from the ensemble over what was counted.
    assert with_late_answers(made)["image_encoder"] == made["image_encoder"]


def test_what_the_client_is_known_to_do_is_not_outside_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_watch.server_cpu, "find_server", lambda _: None)
    monkeypatch.setattr(server_watch, "read_counters", lambda _: {})
    monkeypatch.setattr(server_watch, "stages", lambda *_: {"embed_image": {**STAGE, "failures": 0}})
    monkeypatch.setattr(server_watch.ServerWatch, "_found", lambda *_: None)
    stub = SimpleNamespace(ModelMetadata=lambda _, timeout: SimpleNamespace(name="a", platform="ensemble"))
    watch = server_watch.ServerWatch(stub, "192.0.2.1:8001")
    watch.begin()
    watch.end()
    client = {"prepare_ms": 0.5, "serialise_ms": 0.2, "check_ms": 9.0}
    seen = {"by_model": {"embed_image": {"latency_ms": {"mean": 5.0}}}, "total": {"items": 1}, "client": client}
    # Making and serialising a request lie within its time, checking the answer does not.
    assert watch.results(seen)["client"]["outside_server_ms"] == {"embed_image": pytest.approx(5.0 - 1.8 - 0.7)}


def test_what_clients_waited_and_no_ensemble_worked_is_outside() -> None:
    seen = {name: {"latency_ms": {"mean": 5.0}} for name in ("embed_image", "clip")} | {
        "embed_text": {"latency_ms": None}
    }
    assert outside_server_ms({"embed_image": STAGE, "embed_text": STAGE}, seen, 0.2) == {
        "embed_image": pytest.approx(3.0)
    }


@pytest.mark.parametrize("marks", [BLOCKS, ASCII])
def test_a_bar_has_the_length_of_its_sum(marks: dict[str, str]) -> None:
    drawn = bar({"queue_ms": 1.0, "input_ms": 0.0, "compute_ms": 2.0, "output_ms": 1.0}, 8.0, marks)
    assert drawn == marks["queue_ms"] * 5 + marks["compute_ms"] * 10 + marks["output_ms"] * 5
    thin = bar(dict.fromkeys(("queue_ms", "input_ms", "compute_ms", "output_ms"), 0.25), 40.0, marks)
    assert len(thin) == round(WIDTH / 40)
    assert bar({"queue_ms": -1.0}, 0.0, marks) == ""


@pytest.mark.parametrize(("encoding", "marks"), [("utf-8", BLOCKS), ("UTF8", BLOCKS), ("ascii", ASCII), (None, ASCII)])
def test_the_text_has_a_bar_for_each_stage_and_what_it_was_spent_on(
    encoding: str | None, marks: dict[str, str]
) -> None:
    stage = {**STAGE, "mean_batch": 2.0, "cached": 0, "rejected": 3}
    results = {
        "stages": {"image_encoder": stage, "preprocess": stage | {"queue_ms": 9.0}, "embed_image": stage},
        "by_model": {"embed_image": {"latency_ms": {"mean": 12.0}}},
        "client": {"serialise_ms": 0.25, "outside_server_ms": {"embed_image": 4.0}},
        "server_cpu": {"tritonserver": 0.25, "image_encoder": 1.0},
        "server_cpu_cores": 1.25,
        "gpus": [{"index": 0, "utilization": 0.87, "power_w": 60.0, "memory_bytes": 2**31, "joules_per_item": 0.5}],
    }
    text = render(results, encoding)
    if marks is ASCII:
        text.encode("ascii")
    # The pipeline's order, and no ensemble among its steps.
    names = [line.split()[0] for line in text.splitlines() if line]
    assert names[2:4] == ["preprocess", "image_encoder"]
    bars = {line.split()[0]: line for line in text.splitlines() if marks["queue_ms"] * 3 in line}
    assert marks["queue_ms"] * round(WIDTH * 9.0 / 9.8) + marks["input_ms"] * 2 in bars["preprocess"]
    assert marks["queue_ms"] * 4 + marks["input_ms"] * 2 in bars["image_encoder"]
    assert "outside the server: embed_image" in text
    assert "client: serialise" in text
    assert "server: 1.25 cores: image_encoder 1.00, tritonserver 0.25" in text
    assert "GPU 0: 87% busy, 60 W, 0.5 J an item, 2.0 GiB" in text
