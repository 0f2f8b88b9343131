"""`tritonclip bench gpu`: its arithmetic, what ends a series, what an interruption leaves, what is refused."""

from __future__ import annotations

import stat
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tritonclip_bench.gpu import graph, served
from tritonclip_bench.gpu.device import Device, Spread, is_out_of_memory, measure, open_device
from tritonclip_bench.gpu.gpu_use import GpuUse
from tritonclip_bench.gpu.peaks import Peaks, data_sheet
from tritonclip_bench.gpu.roofline import roofline
from tritonclip_bench.gpu.series import Point, Series
from tritonclip_bench.gpu.served import limited_by
from tritonclip_bench.gpu.subject import Case
from tritonclip_client.main import main
from tritonclip_export.frameworks import torch

UNITS = np.eye(3, 8, dtype=np.float32)
CASE = Case("image", None, Path("model.onnx"), np.arange(3, dtype=np.uint8)[:, None], UNITS, 1000, 400, 100)


def test_the_roofline_by_hand() -> None:
    """1000 operations an item, 400 bytes of weights, 100 bytes an item, on 3000 operations and 1000 bytes a second."""
    points = [Point(batch, Spread(rate, rate, rate), 1.0) for batch, rate in ((1, 1.5), (4, 2.4))]
    slower = [Point(1, Spread(1.0, 1.0, 1.0), 1.0)]
    series = [Series(CASE.name, "image", None, name, points=of) for name, of in (("fast", points), ("slow", slower))]
    one, four = roofline([CASE], series, 3000, 1000)
    assert (one.intensity, one.bound, one.attainable) == (2, "memory", 2)
    assert (one.runtime, one.share) == ("fast", 0.75)
    assert (four.intensity, four.bound, four.attainable, four.share) == (5, "compute", 3, pytest.approx(0.8))


def test_what_towers_are_held_against() -> None:
    flops = {name: Spread(rate, rate, rate) for name, rate in (("bfloat16", 3.0), ("float16", 2.0), ("float32", 1.0))}
    peaks = Peaks(flops, {}, Spread(1, 1, 1), None)
    assert [peaks.of_precision("cuda", kind) for kind in ("float16", "float32", "int8")] == [3.0, 1.0, None]
    assert peaks.of_precision("cpu", "float16") == 1.0
    without = Peaks({name: rate for name, rate in flops.items() if name != "bfloat16"}, {}, Spread(1, 1, 1), None)
    assert without.of_precision("cuda", "float16") == 2.0


@pytest.mark.parametrize(
    ("name", "tflops"),
    [("NVIDIA H200", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA L4", 121), ("Tesla T4", 65), ("NVIDIA L40S", 362)],
)
def test_data_sheets_are_found_by_the_drivers_name(name: str, tflops: float) -> None:
    sheet = data_sheet(name)
    assert sheet is not None
    assert sheet["flops"] == tflops * 1e12


@pytest.mark.parametrize(
    "name", ["NVIDIA A10G", "NVIDIA RTX 4090", "AMD EPYC", "NVIDIA GH200 480GB", "NVIDIA H200 NVL"]
)
def test_other_devices_have_none(name: str) -> None:
    assert data_sheet(name) is None


def test_operations_of_a_node() -> None:
    def node(operator: str, *shapes: tuple[int, ...], out: tuple[int, ...]) -> graph.Node:
        return graph.Node(operator, "here", [("float", shape) for shape in shapes], [("float", out)])

    assert graph.flops([node("MatMul", (2, 5, 7), (7, 3), out=(2, 5, 3))]) == 2 * 2 * 5 * 7 * 3
    assert graph.flops([node("MatMul", (1, 5, 7), (2, 7, 3), out=(2, 5, 3))]) == 2 * 2 * 5 * 7 * 3
    assert graph.flops([node("Gemm", (7, 5), (7, 3), out=(5, 3))]) == 2 * 5 * 7 * 3
    assert graph.flops([node("Conv", (1, 3, 8, 8), (4, 3, 2, 2), out=(1, 4, 4, 4))]) == 2 * 4 * 16 * 12
    assert graph.flops([node("Softmax", (9, 9), out=(9, 9))]) == 0


def test_what_strays_from_the_device() -> None:
    there, here = "CUDAExecutionProvider", "CPUExecutionProvider"
    nodes = [
        graph.Node("MatMul", there, [], [("float16", (2,))]),
        graph.Node("Shape", here, [], [("int64", (2,))]),
        graph.Node("Softmax", here, [], [("float", (2,))]),
        graph.Node("Sqrt", here, [], [("float", ())]),
    ]
    assert graph.strays(nodes, there) == ["Softmax"]


def test_a_measurement_takes_its_time_and_counts_calls() -> None:
    calls: list[int] = []

    def clock(work: Any, count: int) -> float:
        calls.append(count)
        return 0.1

    assert measure(lambda: None, clock, 3, 0.45) == Spread(0.1, 0.1, 0.1)
    assert calls == [1, 1, 5, 5, 5, 5]


@pytest.mark.parametrize(
    ("gpu", "cpu", "client", "words"),
    [
        (0.97, 0.95, 0.9, "the GPU"),
        (0.5, 0.95, 0.9, "CPU cores"),
        (0.5, 0.5, 0.9, "load gen"),
        (0.5, 0.5, 0.1, "nothing"),
    ],
)
def test_what_limits_a_server(gpu: float, cpu: float, client: float, words: str) -> None:
    row = {"gpu": {"gpu_share": gpu}, "machine_cpu_share": cpu, "client_cpu_cores": client}
    assert words in limited_by(row)
    assert limited_by({**row, "gpu": None}) != "the GPU"


@pytest.mark.parametrize(("visible", "share"), [("0", 0.8), ("1", 0.6), ("GPU-b", 0.6), ("7", None), ("", None)])
def test_gpu_use_is_read_from_nvidia_smi(
    visible: str, share: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nvidia-smi is played by a script."""
    script = tmp_path / "nvidia-smi"
    kind = "NVIDIA H200, 9.0"
    rows = f"GPU-abc, {kind}, 80 %, 1000 MiB, 300.00 W\nGPU-bcd, {kind}, 60 %, 1000 MiB, 300.00 W\n"
    script.write_text(f'#!/bin/sh\necho "$@" >"$0.asked"\ncat <<\'END\'\n{rows}END\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with GpuUse() as use:
        time.sleep(0.4)
    expected = {"gpu_share": share, "memory_mib": 1000, "power_w": 300}
    assert use.summary(10) == (None if share is None else expected)
    asked = (tmp_path / "nvidia-smi.asked").read_text()
    assert "--query-gpu=uuid,name,compute_cap,utilization.gpu,memory.used,power.draw" in asked


def test_gpu_use_that_the_driver_does_not_tell_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "nvidia-smi"
    script.write_text("#!/bin/sh\necho 'GPU-abc, NVIDIA H200, 9.0, [N/A], 1000 MiB, [N/A]'\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with GpuUse() as use:
        time.sleep(0.2)
    assert use.summary(10) is None


def test_without_nvidia_smi_gpu_use_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with GpuUse() as use:
        pass
    assert use.summary(10) is None


def test_encoders_that_run_elsewhere_are_an_error(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    lines = [f"/r/{tower}/1/model.onnx runs on CPUExecutionProvider" for tower in ("image_encoder", "text_encoder")]
    log.write_text("\n".join(lines))
    served.check_providers(log, Device("cpu", "a CPU"))
    with pytest.raises(served.WrongProviderError, match="CPUExecutionProvider.*not on CUDAExecutionProvider"):
        served.check_providers(log, Device("cuda", "a GPU"))
    log.write_text(lines[0])
    with pytest.raises(served.WrongProviderError):
        served.check_providers(log, Device("cpu", "a CPU"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_one_line_says_what_is_missing(tmp_path: Path, capsys) -> None:
    assert main(["bench", "gpu", "ViT-B-32", "--json", str(tmp_path / "result.json")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(words in error for words in ("sees no GPU", "driver", "--device cpu"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["ViT-B-33", "--device", "cpu"], "ViT-B-33"),
        (["--repository", "nowhere", "--device", "cpu"], "nowhere"),
        (["ViT-B-32", "--device", "cpu", "--json", "nowhere/result.json"], "nowhere/result.json cannot be written"),
    ],
)
def test_what_cannot_be_measured_is_refused(options: list[str], words: str, capsys) -> None:
    assert main(["bench", "gpu", *options]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["ViT-B-32", "--repository", "r"],
        ["ViT-B-32", "--batches", "1,0"],
        ["ViT-B-32", "--batches", "1,x"],
        ["ViT-B-32", "--seconds", "0"],
        ["ViT-B-32", "--runtimes", "tensorflow"],
    ],
)
def test_options_that_make_no_sense_are_refused(options: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["bench", "gpu", *options])
    assert raised.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_the_load_test_still_stands_without_a_subcommand(capsys) -> None:
    """Nothing listens there, which is exit status 3 as ever."""
    assert main(["bench", "--address", "127.0.0.1:9", "--users", "2"]) == 3
    assert "no ready server at 127.0.0.1:9" in capsys.readouterr().err


def test_out_of_memory_is_told_from_other_faults() -> None:
    assert is_out_of_memory(RuntimeError("cuMemAlloc failed: out of memory"))
    assert not is_out_of_memory(RuntimeError("device-side assert triggered"))


def test_the_cpu_is_a_device_too() -> None:
    device = open_device("cpu")
    assert device.describe() == {"kind": "cpu", "name": device.name}
    assert device.clock(lambda: time.sleep(0.002), 5) >= 0.002
