"""The doors of a real server: hostile neighbours, more than it can serve, callers who are told apart."""

from __future__ import annotations

import io
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

import grpc
import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from PIL import Image
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tritonclip_serve import TritonServer

GOOD_S = 3.0
FLOOD_S = 6.0
DEADLINE_S = 3.0
REFUSAL = re.compile(r"overloaded: .*; retry in [0-9.]+ s")


def jpeg(width: int, height: int) -> bytes:
    values = np.random.default_rng(0).integers(0, 256, (height // 24, width // 24, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).resize((width, height)).save(buffer, "JPEG")
    return buffer.getvalue()


def column(name: str, items: list[bytes]) -> list[grpcclient.InferInput]:
    tensor = grpcclient.InferInput(name, [len(items), 1], "BYTES")
    tensor.set_data_from_numpy(np.array(items, dtype=object).reshape(-1, 1))
    return [tensor]


def malformed(model: str, tensor: str) -> service_pb2.ModelInferRequest:
    """Says that its string has a thousand bytes, and has three."""
    request = service_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name=tensor, datatype="BYTES", shape=[1, 1])
    request.raw_input_contents.append(b"\xe8\x03\x00\x00abc")
    return request


def together(*asks: Callable[[], None]) -> None:
    threads = [threading.Thread(target=ask) for ask in asks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_a_malformed_tensor_fails_nobody_else(server: TritonServer) -> None:
    ends, outcomes, refused = time.monotonic() + GOOD_S, Counter[str](), Counter[str]()

    def hostile() -> None:
        with grpc.insecure_channel(server.grpc_address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            while time.monotonic() < ends:
                for model, tensor in (("embed_text", "text"), ("embed_image", "image"), ("tokenizer", "text")):
                    with pytest.raises(grpc.RpcError) as caught:
                        stub.ModelInfer(malformed(model, tensor), timeout=20)
                    refused[str(caught.value.code())] += 1  # type: ignore[attr-defined]

    def good(number: int) -> None:
        model, inputs = [
            ("embed_text", lambda turn: column("text", [b"good text %d of %d" % (turn, number)])),
            ("embed_image", lambda _: column("image", [jpeg(96, 72)])),
        ][number % 2]
        with grpcclient.InferenceServerClient(server.grpc_address) as client:
            turn = 0
            while time.monotonic() < ends:
                turn += 1
                try:
                    client.infer(model, inputs(turn), client_timeout=20)
                    outcomes["answered"] += 1
                except Exception as error:
                    outcomes[str(error)] += 1

    together(hostile, hostile, hostile, *(lambda number=number: good(number) for number in range(6)))  # type: ignore[misc]
    assert set(outcomes) == {"answered"}, outcomes
    assert outcomes["answered"] > 20
    assert refused["StatusCode.INVALID_ARGUMENT"] > 20
    # Triton 2.51 was seen to leave one of some hundred without an answer, to nobody's harm but the sender's.
    assert set(refused) <= {"StatusCode.INVALID_ARGUMENT", "StatusCode.DEADLINE_EXCEEDED"}
    assert refused["StatusCode.DEADLINE_EXCEEDED"] <= 0.1 * refused["StatusCode.INVALID_ARGUMENT"]


def closed_loop(address: str, inputs: list[grpcclient.InferInput], seconds: float) -> float:
    """Answers a second to four callers who each wait for theirs."""
    ends, counts = time.monotonic() + seconds, Counter[int]()

    def ask(number: int) -> None:
        with grpcclient.InferenceServerClient(address) as client:
            while time.monotonic() < ends:
                client.infer("embed_image", inputs, client_timeout=30)
                counts[number] += 1

    together(*(lambda number=number: ask(number) for number in range(4)))  # type: ignore[misc]
    return sum(counts.values()) / seconds


def test_more_than_it_can_serve_is_refused_in_time_and_the_rest_is_served(server: TritonServer) -> None:
    inputs = column("image", [jpeg(2400, 1600)])
    peak = closed_loop(server.grpc_address, inputs, 4.0)
    answers: list[tuple[float, str]] = []

    def note(sent: float, result: object, error: Exception | None) -> None:
        answers.append((time.monotonic() - sent, "" if error is None else str(error)))

    with grpcclient.InferenceServerClient(server.grpc_address) as client:
        begun, sent = time.monotonic(), 0
        while (now := time.monotonic() - begun) < FLOOD_S:
            for _ in range(int(5 * peak * now) - sent):
                sent += 1
                client.async_infer(
                    "embed_image",
                    inputs,
                    partial(note, time.monotonic()),
                    timeout=int(DEADLINE_S * 1e6),
                    client_timeout=DEADLINE_S,
                )
            time.sleep(0.005)
        while len(answers) < sent and time.monotonic() - begun < FLOOD_S + 2 * DEADLINE_S:
            time.sleep(0.01)
        first = time.monotonic()
        client.infer("embed_image", inputs, client_timeout=30)
        recovered_s = time.monotonic() - first
    kinds = Counter("answered" if not error else "refused" if REFUSAL.search(error) else error for _, error in answers)
    assert len(answers) == sent
    # Far below the goal of 0.9, because other work runs on a test machine; without a door nearly nothing is answered.
    assert kinds["answered"] / FLOOD_S > 0.4 * peak, kinds
    assert kinds["refused"] > 0.8 * (sent - kinds["answered"]), kinds
    assert recovered_s < 5.0


def test_one_with_five_times_the_requests_gets_no_larger_share(server: TritonServer) -> None:
    ends, counts = time.monotonic() + FLOOD_S / 2, Counter[str]()
    inputs = column("image", [jpeg(1600, 1200)])

    def ask(caller: str) -> None:
        with grpcclient.InferenceServerClient(server.grpc_address) as client:
            while time.monotonic() < ends:
                client.infer("embed_image", inputs, client_timeout=30, headers={"tritonclip-caller": caller})
                counts[caller] += time.monotonic() < ends

    together(*[lambda: ask("many")] * 20, *[lambda: ask("few")] * 4)
    # By requests in flight it would be a fifth. The four do not always have one waiting, so it is less than a half.
    assert counts["few"] > 0.25 * counts["many"], counts
