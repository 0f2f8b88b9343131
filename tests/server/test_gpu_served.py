"""The embedded server with its encoders on a device: the same answers as on the CPU, and the benchmark that serves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from devices import DEVICES, MISSING, SLOW_DEVICES
from tritonclip_bench.gpu.device import VARIABLE, open_device
from tritonclip_bench.gpu.served import check_providers
from tritonclip_client import ClipClient
from tritonclip_client.main import main
from tritonclip_export.parity.comparison import MAXIMUM_ABS, MINIMUM_COSINE
from tritonclip_serve import ModelLoadError, TritonServer

TEXTS = ["a red circle", "a small blue square in the top left", "", "a pencil drawing of a green star " * 10]


def answers(repository: Path, device: str, folder: Path, images: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of `images` and of TEXTS, by a server whose encoders run on `device`."""
    log = folder / "tritonserver.log"
    options = {"grpc_port": 0, "metrics_port": 0, "server": "embedded", "log_path": log}
    with open_device(device).chosen(), TritonServer(repository, **options) as server:
        check_providers(log, open_device(device))
        with ClipClient(server.grpc_address) as client:
            return client.embed_images(images), client.embed_texts(TEXTS)


@pytest.fixture(scope="module")
def images(demo: Path) -> list[Path]:
    return sorted(path for path in (demo / "images").iterdir() if path.suffix != ".json")


@pytest.fixture(scope="module")
def on_cpu(
    demo_repository: Path, images: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[np.ndarray, np.ndarray]:
    return answers(demo_repository, "cpu", tmp_path_factory.mktemp("cpu"), images)


@pytest.mark.parametrize("device", DEVICES)
def test_the_server_answers_as_on_the_cpu(
    device: str, on_cpu: tuple[np.ndarray, ...], demo_repository: Path, images: list[Path], tmp_path: Path
) -> None:
    for given, expected in zip(answers(demo_repository, device, tmp_path, images), on_cpu, strict=True):
        assert (given * expected).sum(axis=1).min() >= MINIMUM_COSINE["float32"]["image"]
        assert np.abs(given - expected).max() <= MAXIMUM_ABS["float32"]


@pytest.mark.parametrize("device", SLOW_DEVICES)
def test_the_benchmark_serves_and_says_what_limited_it(
    device: str, demo_repository: Path, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "result.json"
    command = ["bench", "gpu", "--repository", str(demo_repository), "--device", device, "--json", str(out)]
    command += ["--runtimes", "onnxruntime", "--batches", "1", "--rounds", "1", "--seconds", "0.01"]
    assert main([*command, "--serve", "--users", "1,4", "--duration", "2s"]) == 0
    record = json.loads(out.read_text(encoding="utf-8"))
    assert [row["users"] for row in record["served"]] == [1, 4]
    printed = capsys.readouterr().out
    for row in record["served"]:
        assert row["items_per_s"] > 0
        assert row["failures"] == 0
        assert 0 < row["machine_cpu_share"] <= 1
        assert (row["gpu"] is not None) == (device == "cuda")
        assert row["limited_by"] in printed
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.skipif(MISSING is None, reason="this machine has a GPU")
def test_a_server_that_must_have_a_gpu_says_why_it_does_not_start(
    demo_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "cuda")
    options = {"grpc_port": 0, "metrics_port": 0, "log_path": tmp_path / "server.log"}
    with pytest.raises(ModelLoadError, match="TRITONCLIP_DEVICE is cuda"), TritonServer(demo_repository, **options):
        pass
