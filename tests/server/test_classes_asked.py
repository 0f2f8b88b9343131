"""`classification` asked of every output of every model: on 2.51 a BYTES output ended the server with SIGFPE."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from PIL import Image
from tritonclient.grpc.model_config_pb2 import TYPE_STRING
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from classifier_command import add_classifier
from tritonclip_client import ClipClient
from tritonclip_export.repository.configs import read_configs
from tritonclip_serve import TritonServer

COUNTS = (1, 3, 1000)


@pytest.fixture(scope="module")
def server(demo: Path, demo_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server of its own: the others' must not end with it."""
    folder = tmp_path_factory.mktemp("classes")
    repository = shutil.copytree(demo_repository, folder / "repository")
    add_classifier("build", repository, "--name", "shapes", "--labels", demo / "labels.txt")
    with TritonServer(repository, grpc_port=0, http_port=0, metrics_port=0, log_path=folder / "log") as server:
        yield server


def arrays(model: str) -> dict[str, np.ndarray]:
    """Inputs that the model answers."""
    encoded = io.BytesIO()
    Image.new("RGB", (70, 70), "red").save(encoded, "PNG")
    image = np.array([[encoded.getvalue()]], dtype=object)
    text = np.array([[b"a red circle"]], dtype=object)
    embedding = np.full((1, 64), 1 / 8, np.float32)
    ids = np.array([[49406, 320, 49407] + [0] * 13], np.int32)
    known = {
        "preprocess": {"image": image},
        "image_encoder": {"pixels": np.zeros((1, 64, 64, 3), np.uint8)},
        "embed_image": {"image": image},
        "classify_shapes": {"image": image},
        "classifier_head_shapes": {"image_embedding": embedding},
        "tokenizer": {"text": text},
        "text_encoder": {"input_ids": ids},
        "cached_text_encoder": {"input_ids": ids},
        "embed_text": {"text": text},
        "split_text": {"texts": np.array([b"a red circle " * 100], dtype=object)},
        "similarity": {"image_embedding": embedding, "text_embedding": embedding},
        "clip": {"image": image, "text": text},
    }
    return known[model]


def ask(client: Any, protocol: ModuleType, model: str, outputs: list[str], count: int) -> str:
    """The status of one request; whether it is answered or refused is the server's to say."""
    inputs = []
    for name, array in arrays(model).items():
        inputs.append(protocol.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        inputs[-1].set_data_from_numpy(array)
    wanted = [protocol.InferRequestedOutput(name, class_count=count) for name in outputs]
    options = {"client_timeout": 30} if protocol is tritonclient.grpc else {}
    try:
        client.infer(model, inputs, outputs=wanted, **options)
    except InferenceServerException as error:
        return str(error.status())
    return "OK"


@pytest.mark.parametrize("name", ["grpc", "http"])
def test_the_server_survives(server: TritonServer, name: str) -> None:
    configs = read_configs(server.repository)
    assert {"classify_shapes", "split_text", "clip"} <= set(configs)
    texts = [model for model, config in configs.items() if TYPE_STRING in [one.data_type for one in config.output]]
    assert texts == []

    protocol = getattr(tritonclient, name)
    with protocol.InferenceServerClient(getattr(server, f"{name}_address")) as client:
        for model, config in configs.items():
            outputs = [tensor.name for tensor in config.output]
            for count in COUNTS:
                for chosen in [*([output] for output in outputs), outputs]:
                    assert "UNAVAILABLE" not in ask(client, protocol, model, chosen, count), (model, chosen)
            assert client.is_server_live(), model

    with ClipClient(server.grpc_address) as client:
        client.check_ready()
        assert client.classify_baked([Image.new("RGB", (40, 40), "blue")], "shapes")[0].label
