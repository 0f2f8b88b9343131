"""The proxy of deploy/nginx/, for real: keys, limits, and the name by which the server knows a caller."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

import kserve_server
import nginx
from certificates import Authority
from tiny_repository import caller_of, write_tiny_repository
from tritonclip_client import ClipClient, ServerError, Tls
from tritonclip_serve import TritonServer

pytestmark = pytest.mark.skipif(nginx.MISSING is not None, reason=nginx.MISSING or "")

KEYS = {"a1" * 32: "team-a", "b2" * 32: "team-b"}
KEY_A, KEY_B = KEYS
MB = 1_000_000


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"), "authority")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("tiny")
    with TritonServer(write_tiny_repository(folder / "repository"), grpc_port=0, metrics_port=0) as server:
        yield server


@pytest.fixture(scope="module")
def proxied(tiny: TritonServer, authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The proxy before a server that tells who called it."""
    pair = authority.sign("proxy", "127.0.0.1")
    with nginx.proxy(tmp_path_factory.mktemp("nginx"), tiny.grpc_address, pair, KEYS) as address:
        yield address


@pytest.fixture
def client(proxied: str, authority: Authority) -> Iterator[Any]:
    options = [("grpc.max_send_message_length", -1)]
    root = str(authority.certificate)
    client = triton.InferenceServerClient(proxied, ssl=True, root_certificates=root, channel_args=options)
    yield client
    client.close()


def ask(client: Any, headers: dict[str, str], text: bytes = b"text", **more: Any) -> str:
    tensor = triton.InferInput("text", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text]], dtype=np.object_))
    answer = client.infer("embed_text", [tensor], headers=headers, client_timeout=20, **more)
    return caller_of(answer.as_numpy("embedding"))


def refused(client: Any, headers: dict[str, str], **more: Any) -> tuple[str, str]:
    with pytest.raises(InferenceServerException) as refusal:
        ask(client, headers, **more)
    return str(refusal.value.status()).rpartition(".")[2], refusal.value.message()


def test_a_key_lets_the_client_in_and_nothing_else_does(
    server: TritonServer, authority: Authority, tmp_path: Path
) -> None:
    tls = Tls(authority.certificate)
    with nginx.proxy(tmp_path, server.grpc_address, authority.sign("before", "127.0.0.1"), KEYS) as address:
        with ClipClient(address, tls=tls, headers=bearer(KEY_A)) as client:
            embedding = client.embed_texts(["a red square"])
        for headers in (None, bearer("c3" * 32), {"authorization": KEY_A}):
            with ClipClient(address, tls=tls, headers=headers) as client:
                with pytest.raises(
                    ServerError, match="no valid key; send one as 'authorization: Bearer KEY'"
                ) as refusal:
                    client.embed_texts(["a red square"])
                assert refusal.value.status == "UNAUTHENTICATED"
    with ClipClient(server.grpc_address) as client:
        np.testing.assert_array_equal(embedding, client.embed_texts(["a red square"]))


@pytest.mark.parametrize(("key", "name"), KEYS.items())
def test_the_server_knows_a_caller_by_its_key(client: Any, key: str, name: str) -> None:
    assert ask(client, bearer(key)) == name


def test_no_caller_names_itself(client: Any) -> None:
    for spelled in ("tritonclip-caller", "tritonclip_caller", "x-tritonclip-caller"):
        assert ask(client, {**bearer(KEY_B), spelled: "team-a"}) == "team-b"
    assert ask(client, bearer(KEY_B), parameters={"tritonclip-caller": "team-a"}) == "team-b"


def test_a_message_beyond_the_limit_is_refused_and_one_below_it_is_not(client: Any) -> None:
    assert ask(client, bearer(KEY_A), text=b"x" * (47 * MB)) == "team-a"
    status, message = refused(client, bearer(KEY_A), text=b"x" * (60 * MB))
    assert (status, message) == (
        "RESOURCE_EXHAUSTED",
        "the message is larger than 48 MiB; send fewer items in one request",
    )
    assert ask(client, bearer(KEY_A)) == "team-a"


def test_what_controls_the_server_does_not_pass(client: Any) -> None:
    assert client.is_server_ready(headers=bearer(KEY_A))
    calls = (
        client.get_model_repository_index,
        client.get_inference_statistics,
        client.get_log_settings,
        client.get_system_shared_memory_status,
    )
    for call in calls:
        with pytest.raises(InferenceServerException, match="this method is not for callers") as refusal:
            call(headers=bearer(KEY_A))
        assert refusal.value.status() == str(grpc.StatusCode.UNIMPLEMENTED)


def test_a_caller_with_too_many_requests_is_told_when_to_come_back(authority: Authority, tmp_path: Path) -> None:
    at_once, too_many = 64, 6
    release, refusals = threading.Event(), queue.Queue[Exception | None]()
    slow = kserve_server.Server(on_infer=lambda call: bool(release.wait(20)))
    pair, root = authority.sign("limits", "127.0.0.1"), str(authority.certificate)
    with (
        kserve_server.serving(slow, workers=at_once + too_many) as server,
        nginx.proxy(tmp_path, server.address, pair, KEYS) as address,
    ):
        # One connection alone is held to the limit by HTTP/2 itself.
        clients = [
            triton.InferenceServerClient(
                address, ssl=True, root_certificates=root, channel_args=[("grpc.use_local_subchannel_pool", 1)]
            )
            for _ in range(2)
        ]
        tensor = triton.InferInput("text", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[b"text"]], dtype=np.object_))
        for number in range(at_once + too_many):
            clients[number % 2].async_infer(
                "embed_text", [tensor], lambda result, error: refusals.put(error), headers=bearer(KEY_A)
            )
        first = [refusals.get(timeout=10) for _ in range(too_many)]
        release.set()
        rest = [refusals.get(timeout=10) for _ in range(at_once)]
        for client in clients:
            client.close()
    assert {str(error) for error in first} == {
        "[StatusCode.UNAVAILABLE] overloaded: more than 64 requests of this caller at once; retry in 0.5 s"
    }
    assert rest == [None] * at_once
