"""Repositories after `tritonclip configure`, read by the real server: of a GPU's configs all but the backend."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

import tritonclip_serve.server as serving
from fake_tensorrt import FakeToolkit
from tritonclip_client import ClipClient
from tritonclip_client.main import main
from tritonclip_export.engine.build import EngineRequest, build
from tritonclip_export.repository.configs import read_config, write_configs
from tritonclip_serve import TritonServer
from tritonclip_serve.errors import ModelLoadError
from tritonclip_serve.verified import ALL, NONE

ENCODERS = ("image_encoder", "text_encoder")
FREE_PORTS = {"grpc_port": 0, "metrics_port": 0}


@pytest.fixture(scope="module")
def configured(demo_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every setting that is not a GPU's, other than by default."""
    repository = shutil.copytree(demo_repository, tmp_path_factory.mktemp("configured") / "repository")
    settings = ["--max-image-batch", "3", "--max-text-batch", "5", "--preprocess-threads", "1", "--threads", "1"]
    assert main(["configure", str(repository), *settings, "--queue-seconds", "7", "--no-text-cache"]) == 0
    return repository


@pytest.fixture(scope="module")
def on_a_gpu(configured: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As for a GPU, warm-ups and pinned memory too, but for the backend and what it alone reads."""
    repository = shutil.copytree(configured, tmp_path_factory.mktemp("gpu") / "repository")
    assert main(["configure", str(repository), "--runtime", "onnxruntime", "--queue-delay-us", "300"]) == 0
    for model in ENCODERS:
        config, on_cpu = (read_config(root / model / "config.pbtxt") for root in (repository, configured))
        config.backend = on_cpu.backend
        for field in ("instance_group", "parameters", "default_model_filename"):
            config.ClearField(field)
        config.instance_group.MergeFrom(on_cpu.instance_group)
        config.parameters.MergeFrom(on_cpu.parameters)
        write_configs(repository, {model: config})
    return repository


@pytest.fixture(scope="module", params=["configured", "on_a_gpu"])
def address(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp(request.param) / "server.log"
    # The one for a GPU was changed by hand, which `serve` refuses.
    verify = NONE if request.param == "on_a_gpu" else ALL
    with TritonServer(request.getfixturevalue(request.param), log_path=log, verify=verify, **FREE_PORTS) as server:
        yield server.grpc_address


def test_answers_do_not_depend_on_settings(address: str, server: TritonServer, demo: Path) -> None:
    images = sorted(path for path in (demo / "images").iterdir() if path.suffix in (".jpg", ".png"))
    texts = [f"a red circle and {number} squares" for number in range(12)]
    with ClipClient(address) as client, ClipClient(server.grpc_address) as other:
        np.testing.assert_allclose(client.embed_images(images), other.embed_images(images), atol=1e-5)
        np.testing.assert_allclose(client.embed_texts(texts), other.embed_texts(texts), atol=1e-5)


def test_a_larger_batch_is_refused(address: str) -> None:
    too_many = grpc.InferInput("input_ids", [6, 16], "INT32")
    too_many.set_data_from_numpy(np.zeros((6, 16), np.int32))
    with (
        grpc.InferenceServerClient(address) as raw,
        pytest.raises(InferenceServerException, match="batch-size must be <= 5"),
    ):
        raw.infer("text_encoder", [too_many])


@pytest.mark.parametrize("runtime", ["onnxruntime", "tensorrt"])
def test_the_real_server_misses_nothing_but_the_backend(
    runtime: str, demo_repository: Path, tmp_path: Path, monkeypatch
) -> None:
    repository = shutil.copytree(demo_repository, tmp_path / "repository")
    build(EngineRequest(repository), FakeToolkit())
    assert main(["configure", str(repository), "--runtime", runtime, "--release", "26.04"]) == 0
    monkeypatch.setattr(serving, "check_fit", lambda *_: None)
    with (
        pytest.raises(ModelLoadError) as caught,
        TritonServer(repository, log_path=tmp_path / "log", verify=NONE, **FREE_PORTS),
    ):
        pass
    reasons = re.findall(r"model '(\w+)' failed to load: (.*?)(?:, try|\.)", str(caught.value))
    assert dict(reasons) == dict.fromkeys(ENCODERS, f"unable to find backend library for backend '{runtime}'")
