"""What Triton's own tests ask of a server, asked of this one; benchmarks/tritonclip_chaos/mirrors.toml tells which."""

from __future__ import annotations

import json
import random
import re
import signal
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from sample_images import encode, photo
from supervised import Served, wait_until
from tritonclip_bench.server.endpoint import connect
from tritonclip_chaos.campaigns._hostile import embed_request, embeddings, judge, not_unit, send
from tritonclip_chaos.served import tree
from tritonclip_client import ClipClient
from tritonclip_serve import TritonServer

ENTRY_POINTS = ("embed_image", "embed_text", "clip")
CANCELLED = 100
TIMEOUT_S = 30
IMAGE = encode(photo(), "JPEG")
_PENDING = re.compile(r'^nv_inference_pending_request_count\{model="([^"]+)".*\} (\d+)', re.MULTILINE)


@pytest.fixture
def stub(server: TritonServer) -> Iterator[object]:
    channel, made = connect(server.grpc_address)
    with channel:
        yield made


@pytest.fixture(scope="module")
def ordinary(server: TritonServer) -> tuple[np.ndarray, np.ndarray]:
    """An image's and a text's embedding, before anything happens."""
    return answers(server)


def answers(server: TritonServer) -> tuple[np.ndarray, np.ndarray]:
    with ClipClient(server.grpc_address, retry=False) as client:
        return client.embed_images([IMAGE]), client.embed_texts(["a dog"])


def request_of(model: str, chance: random.Random) -> service_pb2.ModelInferRequest:
    """One with new texts, which are in no cache."""
    text = f"a dog of the number {chance.random()}".encode()
    if model == "embed_text":
        return embed_request(model, "text", [text] * 8)
    request = embed_request(model, "image", [IMAGE] * 4)
    if model == "clip":
        request.MergeFrom(embed_request(model, "text", [text]))
    return request


def cancelled(stub, request: service_pb2.ModelInferRequest, after_s: float) -> grpc.StatusCode:
    """What becomes of a request that is cancelled after some time."""
    call = stub.ModelInfer.future(request, timeout=TIMEOUT_S)
    time.sleep(after_s)
    call.cancel()
    return call.code()


def pending(metrics: str) -> dict[str, int]:
    """Requests that wait, by model, as Triton counts them."""
    with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=10) as page:
        return {model: int(count) for model, count in _PENDING.findall(page.read().decode())}


@pytest.fixture(scope="module")
def supervised(demo_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Cancellations can end tritonserver 2.51 (server#7368, server#8034), so that somebody has to start it again."""
    served = Served(demo_repository, tmp_path_factory.mktemp("supervised"), "--restart-limit", "100")
    yield served
    served.kill()


def calm_after(served: Served, ordinary: tuple[np.ndarray, np.ndarray]) -> None:
    """Nothing waits any more, by Triton's own count, and answers are what they were."""
    with ClipClient(served.grpc) as client:
        for found, expected in zip(
            (client.embed_images([IMAGE]), client.embed_texts(["a dog"])), ordinary, strict=True
        ):
            assert np.array_equal(found, expected)
    assert wait_until(lambda: set(pending(served.metrics)) > set(ENTRY_POINTS), TIMEOUT_S)
    assert wait_until(lambda: not any(pending(served.metrics).values()), TIMEOUT_S), pending(served.metrics)


@pytest.mark.parametrize("model", ENTRY_POINTS)
def test_cancelled_requests_leave_nothing_behind(supervised: Served, ordinary, model: str) -> None:
    """L0_request_cancellation, L0_grpc_state_cleanup."""
    chance = random.Random(f"cancel {model}")
    channel, stub = connect(supervised.grpc)
    with channel:
        codes = [cancelled(stub, request_of(model, chance), chance.uniform(0, 0.02)) for _ in range(CANCELLED)]
    assert codes.count(grpc.StatusCode.CANCELLED) > CANCELLED // 10
    assert set(codes) <= {grpc.StatusCode.CANCELLED, grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
    calm_after(supervised, ordinary)


def test_deadlines_that_pass_leave_nothing_behind(supervised: Served, ordinary) -> None:
    """L0_client_timeout."""
    chance = random.Random("deadlines")
    channel, stub = connect(supervised.grpc)
    codes = []
    with channel:
        for _ in range(30):
            try:
                stub.ModelInfer(request_of(chance.choice(ENTRY_POINTS), chance), timeout=chance.uniform(0.0005, 0.01))
            except grpc.RpcError as error:
                codes.append(error.code())
    assert codes.count(grpc.StatusCode.DEADLINE_EXCEEDED) > 5
    calm_after(supervised, ordinary)


def test_nul_is_a_character_of_a_text(stub) -> None:
    """L0_nullchar_string."""
    texts = [b"a\x00dog", b"\x00", b"a dog\x00"]
    response = stub.ModelInfer(embed_request("embed_text", "text", texts), timeout=TIMEOUT_S)
    assert not_unit(response) == ""
    alone = [stub.ModelInfer(embed_request("embed_text", "text", [one]), timeout=TIMEOUT_S) for one in texts]
    rows = np.concatenate([embeddings(one) for one in alone])
    assert (embeddings(response) * rows).sum(axis=1).min() > 0.99999
    # What stands behind it counts.
    assert (rows[0] * rows[1]).sum() < 0.999


def test_nul_in_names_and_ids(stub, ordinary) -> None:
    """L0_nullchar_string: Triton reads ids and names up to it, and never as another's."""
    request = embed_request("embed_text", "text", [b"a dog"])
    request.id = "a\x00b"
    response = stub.ModelInfer(request, timeout=TIMEOUT_S)
    assert response.id == "a"
    assert np.array_equal(embeddings(response), ordinary[1])
    for model, tensor, version in (
        ("embed_text\x00x", "text", ""),
        ("embed_text", "text\x00x", ""),
        ("embed_text", "text", "1\x00"),
    ):
        request = embed_request(model, tensor, [b"a dog"])
        request.model_version = version
        outcome = send(
            stub, model, request, lambda answer: "" if np.array_equal(embeddings(answer), ordinary[1]) else "other"
        )
        assert outcome.outcome in ("answered", "refused"), outcome.detail


def test_large_payloads_are_refused_and_their_memory_does_not_add_up(server: TritonServer, stub, ordinary) -> None:
    """L0_large_payload, L0_memory_growth."""
    large = embed_request("embed_image", "image", [IMAGE + bytes(64 << 20)])
    pid = server.pid
    held = []
    for _ in range(12):
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(large, timeout=TIMEOUT_S)
        assert judge(caught.value)[0] == "refused", caught.value.details()
        held.append(tree.pss_mb(tree.descendants(pid)))
    # The first few may stay with the allocator; what follows takes their place.
    assert held[-1] < held[7] + 100, held
    assert np.array_equal(answers(server)[0], ordinary[0])


CLOSED = {
    "load": lambda stub: stub.RepositoryModelLoad(service_pb2.RepositoryModelLoadRequest(model_name="embed_text")),
    "unload": lambda stub: stub.RepositoryModelUnload(
        service_pb2.RepositoryModelUnloadRequest(model_name="image_encoder")
    ),
    "index": lambda stub: stub.RepositoryIndex(service_pb2.RepositoryIndexRequest()),
    "log": lambda stub: stub.LogSettings(service_pb2.LogSettingsRequest()),
    "trace": lambda stub: stub.TraceSetting(service_pb2.TraceSettingRequest()),
    "shared memory": lambda stub: stub.SystemSharedMemoryRegister(
        service_pb2.SystemSharedMemoryRegisterRequest(name="x", key="/x", byte_size=64)
    ),
}


@pytest.mark.parametrize("what", CLOSED)
def test_control_is_closed_to_callers(stub, what: str) -> None:
    """L0_lifecycle, L0_logging."""
    with pytest.raises(grpc.RpcError, match="restricted"):
        CLOSED[what](stub)


def test_no_file_is_overridden(server: TritonServer, stub, ordinary) -> None:
    """L0_lifecycle file_override_security."""
    marker = Path(server.repository, "embed_text", "1", "marker")
    request = service_pb2.RepositoryModelLoadRequest(model_name="embed_text")
    request.parameters["config"].string_param = json.dumps({"backend": "python", "max_batch_size": 1})
    for name in ("file:1/marker", "file:../marker", "file:1/model.py"):
        request.parameters[name].bytes_param = b"open('/tmp/marker', 'w')"
    with pytest.raises(grpc.RpcError, match="restricted"):
        stub.RepositoryModelLoad(request)
    assert not marker.exists()
    assert np.array_equal(answers(server)[1], ordinary[1])


def test_embeddings_that_are_not_finite_are_refused(stub) -> None:
    """L0_nan_inf."""
    for value in (np.nan, np.inf, -np.inf):
        request = service_pb2.ModelInferRequest(model_name="similarity")
        for name, rows in (("image_embedding", 1), ("text_embedding", 2)):
            array = np.full((rows, 64), value if rows == 2 else 0.125, np.float32)
            request.inputs.add(name=name, datatype="FP32", shape=array.shape)
            request.raw_input_contents.append(array.tobytes())
        with pytest.raises(grpc.RpcError, match=r"text_embedding\[0\]") as caught:
            stub.ModelInfer(request, timeout=TIMEOUT_S)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_it_ends_while_callers_stay_connected(demo_repository: Path, tmp_path: Path) -> None:
    """L0_lifecycle shutdown_with_live_connection."""
    served = Served(demo_repository, tmp_path, "--drain-seconds", "5")
    try:
        with closing(grpc.insecure_channel(served.grpc)) as channel, ClipClient(served.grpc) as client:
            grpc.channel_ready_future(channel).result(TIMEOUT_S)
            client.embed_texts(["a dog"])
            begun_s = time.monotonic()
            served.process.send_signal(signal.SIGTERM)
            assert served.process.wait(TIMEOUT_S) == 0
            assert time.monotonic() - begun_s < 20
    finally:
        served.kill()
