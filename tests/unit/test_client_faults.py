"""What happens when the server is down, slow, overloaded or refuses, through both clients."""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import grpc
import numpy as np
import pytest

from asking import both_clients
from kserve_server import Call, Server, fail, fail_first, serving, vectors
from tritonclip_client import (
    AsyncClipClient,
    ClipClient,
    ClipError,
    DeadlineExceededError,
    InvalidImageError,
    InvalidTextError,
    ServerError,
    ServerUnavailableError,
)

IMAGES = [b"image %d" % number for number in range(24)]
PATIENCE_S = 20.0
REFUSALS = [code for code in grpc.StatusCode if code not in (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE)]


class Holding:
    """An `on_infer` that holds calls until the client gives them up, and counts those that it gave up."""

    def __init__(self, holds=lambda call: True) -> None:
        self._holds = holds
        self.held = threading.Semaphore(0)
        self.given_up = threading.Semaphore(0)

    def __call__(self, call: Call) -> None:
        if not self._holds(call):
            return
        ended = threading.Event()
        call.context.add_callback(ended.set)
        self.held.release()
        if ended.wait(PATIENCE_S):
            self.given_up.release()


async def _after(first, then):
    await first
    return await then()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@both_clients
def test_a_server_that_is_down(ask):
    address = f"127.0.0.1:{free_port()}"

    with pytest.raises(ServerUnavailableError, match="tritonclip serve DIR") as caught:
        ask(address, lambda client: client.embed_images(IMAGES), timeout_s=0.5)

    assert address in str(caught.value)
    assert caught.value.exit_code == 3
    assert ask(address, lambda client: client.ready()) is False


@both_clients
@pytest.mark.parametrize("count", [1, 24], ids=["one request", "many requests"])
def test_an_unavailable_server_is_asked_again(ask, count):
    with serving(Server(on_infer=fail_first(2, grpc.StatusCode.UNAVAILABLE))) as server:
        result = ask(server.address, lambda client: client.embed_images(IMAGES[:count]))

    np.testing.assert_array_equal(result, vectors(IMAGES[:count]))
    assert len(server.calls) == (count + 3) // 4 + 2


@both_clients
def test_without_retry_every_request_is_sent_once(ask):
    always = fail_first(10**6, grpc.StatusCode.UNAVAILABLE, "overloaded: the door; retry in 0.1 s")
    with serving(Server(on_infer=always)) as server, pytest.raises(ServerUnavailableError) as caught:
        ask(server.address, lambda client: client.embed_images(IMAGES[:1]), retry=False)

    assert caught.value.retry_after_s == 0.1
    assert len(server.calls) == 1


@both_clients
def test_an_overloaded_server_is_asked_again_when_it_says(ask):
    refused = fail_first(2, grpc.StatusCode.UNAVAILABLE, "in ensemble 'embed_image', overloaded: full; retry in 0.2 s")
    with serving(Server(on_infer=refused)) as server:
        started = time.monotonic()
        result = ask(server.address, lambda client: client.embed_images(IMAGES[:1]))

    np.testing.assert_array_equal(result, vectors(IMAGES[:1]))
    assert len(server.calls) == 3
    assert time.monotonic() - started >= 0.4


@both_clients
@pytest.mark.parametrize(
    ("status", "message"),
    [
        ("NOT_FOUND", "Request for unknown model: 'embed_image' has no available versions"),
        ("INTERNAL", "in ensemble 'embed_image', Stub process 'preprocess_0_1' is not healthy."),
        ("INVALID_ARGUMENT", "incomplete string data for inference input 'image', expecting string of length 9"),
        ("UNKNOWN", "Stream removed (Socket closed)"),
    ],
)
def test_what_a_dying_model_and_a_bad_neighbour_leave_is_repeated(ask, status, message):
    with serving(Server(on_infer=fail_first(3, grpc.StatusCode[status], message))) as server:
        result = ask(server.address, lambda client: client.embed_images(IMAGES))

    np.testing.assert_array_equal(result, vectors(IMAGES))
    assert len(server.calls) == 6 + 3


@both_clients
def test_a_lost_request_is_sent_again(ask):
    lost = iter([True])
    holding = Holding(holds=lambda call: next(lost, False))
    with serving(Server(on_infer=holding)) as server:
        result = ask(server.address, lambda client: client.embed_images(IMAGES[:1], timeout_s=3.5))

    np.testing.assert_array_equal(result, vectors(IMAGES[:1]))
    assert holding.given_up.acquire(timeout=PATIENCE_S)
    assert len(server.calls) == 2


def test_many_threads_share_a_client_across_a_restart():
    port, ends = free_port(), time.monotonic() + 4
    answered = []

    def work(client: ClipClient) -> None:
        while time.monotonic() < ends:
            np.testing.assert_array_equal(client.embed_images(IMAGES[:1]), vectors(IMAGES[:1]))
            answered.append(time.monotonic())

    with ClipClient(f"127.0.0.1:{port}") as client, ThreadPoolExecutor(16) as pool:
        with serving(port=port):
            tasks = [pool.submit(work, client) for _ in range(16)]
            time.sleep(1)
        time.sleep(1.5)
        with serving(port=port):
            back = time.monotonic()
            for task in tasks:
                task.result()

    assert min(moment for moment in answered if moment > back) - back < 1.5


@both_clients
def test_retries_share_the_deadline_of_the_call(ask):
    always = fail_first(10**6, grpc.StatusCode.UNAVAILABLE)
    with serving(Server(on_infer=always)) as server, pytest.raises(ServerUnavailableError):
        ask(server.address, lambda client: client.embed_images(IMAGES[:1], timeout_s=1.0))

    left = [call.time_left_s for call in server.calls]
    assert len(left) > 1
    # Pauses are drawn from 0 on, and what a deadline looks like over there jitters.
    assert left[-1] < left[0]
    assert all(later < earlier + 0.05 for earlier, later in pairwise(left))
    # gRPC rounds a timeout up on its way.
    assert left[0] <= 1.1


@both_clients
@pytest.mark.parametrize("count", [1, 24], ids=["one request", "many requests"])
def test_a_silent_server_meets_the_deadline(ask, count):
    holding = Holding()
    with serving(Server(on_infer=holding)) as server, pytest.raises(DeadlineExceededError, match=r"within 0\.5 s"):
        ask(server.address, lambda client: client.embed_images(IMAGES[:count], timeout_s=0.5))

    assert holding.given_up.acquire(timeout=PATIENCE_S)


@both_clients
def test_requests_are_in_flight_together_but_not_too_many(ask):
    together = threading.Barrier(3)
    server = Server(on_infer=lambda call: together.wait(PATIENCE_S))
    with serving(server):
        result = ask(server.address, lambda client: client.embed_images(IMAGES), max_in_flight=3)

    # The barrier lets calls pass only three at a time; with fewer in flight it breaks.
    np.testing.assert_array_equal(result, vectors(IMAGES))
    assert server.most_at_once == 3


@both_clients
def test_order_is_kept_when_the_first_request_answers_last(ask):
    others = threading.Semaphore(0)

    def on_infer(call: Call) -> None:
        if IMAGES[0] in call.items:
            assert all(others.acquire(timeout=PATIENCE_S) for _ in range(5))
        else:
            others.release()

    with serving(Server(on_infer=on_infer)) as server:
        result = ask(server.address, lambda client: client.embed_images(IMAGES))

    np.testing.assert_array_equal(result, vectors(IMAGES))


@both_clients
@pytest.mark.parametrize("position", [0, 3, 4, 13, 23])
def test_a_bad_item_is_named_by_its_place_in_the_whole_list(ask, position, tmp_path):
    file = tmp_path / "broken.jpg"
    file.write_bytes(b"bad image")
    images = [*IMAGES[:position], file, *IMAGES[position + 1 :]]
    with serving() as server, pytest.raises(InvalidImageError) as caught:
        ask(server.address, lambda client: client.embed_images(images))

    assert caught.value.index == position
    assert str(caught.value) == f"image[{position}] ({file}): 9 bytes; allowed: good; send good"


@both_clients
def test_a_bad_item_of_one_clip_request_is_named(ask):
    with serving() as server:
        with pytest.raises(InvalidImageError, match=r"^image\[1\]:"):
            ask(server.address, lambda client: client.similarity([b"fine", b"bad"], ["a"]))
        with pytest.raises(InvalidTextError, match=r"^text\[2\] \('bad'\):"):
            ask(server.address, lambda client: client.similarity([b"fine"], ["a", "b", "bad"]))


@both_clients
def test_a_bad_prompt_is_named_by_its_label(ask):
    with serving() as server, pytest.raises(InvalidTextError, match=r"^text\[3\] \('bad thing 3'\):"):
        ask(
            server.address,
            lambda client: client.classify([b"fine"], ["0", "1", "2", "bad thing 3"], templates=["a {}", "b {}", "{}"]),
        )


@both_clients
def test_the_first_failure_cancels_what_is_in_flight(ask):
    holding = Holding(holds=lambda call: b"bad" not in call.items)

    def on_infer(call: Call) -> None:
        if b"bad" in call.items:
            assert all(holding.held.acquire(timeout=PATIENCE_S) for _ in range(3))
        holding(call)

    images = [b"bad", *IMAGES]
    with serving(Server(on_infer=on_infer)) as server:
        with pytest.raises(InvalidImageError, match=r"^image\[0\]"):
            ask(server.address, lambda client: client.embed_images(images), max_in_flight=4)
        assert all(holding.given_up.acquire(timeout=PATIENCE_S) for _ in range(3))

    assert len(server.calls) == 4


@both_clients
def test_an_endless_source_is_read_only_as_far_as_needed(ask):
    taken = itertools.count()
    source = (b"image %d" % next(taken) if number != 9 else b"bad" for number in itertools.count())
    with serving() as server, pytest.raises(InvalidImageError, match=r"^image\[9\]"):
        ask(server.address, lambda client: client.embed_images(source), max_in_flight=2)

    # At most: the chunks answered before the bad one, two in flight and the one that waits, with its opener.
    assert next(taken) <= 4 * 6


@both_clients
def test_an_unreadable_file_deep_in_an_iterator_is_named(ask, tmp_path):
    images = itertools.chain(IMAGES, [tmp_path / "gone.jpg"])
    with serving() as server, pytest.raises(InvalidImageError, match=r"^image\[24\] .*no such file"):
        ask(server.address, lambda client: client.embed_images(images))


@pytest.mark.parametrize("count", [1, 24], ids=["one request", "many requests"])
def test_a_cancelled_task_cancels_its_requests(count):
    holding = Holding()

    async def main(address: str) -> None:
        async with AsyncClipClient(address) as client:
            task = asyncio.create_task(client.embed_images(IMAGES[:count]))
            await asyncio.to_thread(holding.held.acquire)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    with serving(Server(on_infer=holding)) as server:
        asyncio.run(main(server.address))
        assert holding.given_up.acquire(timeout=PATIENCE_S)


@both_clients
def test_a_closed_client_says_so(ask):
    def close_and_ask(client):
        closing = client.close()
        return client.embed_texts(["a"]) if closing is None else _after(closing, lambda: client.embed_texts(["a"]))

    with serving() as server, pytest.raises(ClipError, match="client is closed"):
        ask(server.address, close_and_ask)


@both_clients
def test_an_internal_error_says_where_to_look(ask):
    def on_infer(call: Call) -> None:
        fail(call, grpc.StatusCode.INTERNAL, "out of ideas")

    with serving(Server(on_infer=on_infer)) as server, pytest.raises(ServerError, match="the server's log") as caught:
        ask(server.address, lambda client: client.embed_images(IMAGES[:1]))

    assert caught.value.status == "INTERNAL"


@both_clients
def test_no_proxy_stands_between_a_client_and_its_own_machine(ask, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    with serving() as server:
        result = ask(server.address, lambda client: client.embed_images(IMAGES[:1]), retry=False)

    np.testing.assert_array_equal(result, vectors(IMAGES[:1]))
