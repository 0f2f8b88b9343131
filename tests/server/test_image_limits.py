"""On a real server: an image that costs too much, a malformed tensor or a killed decoder fails its own request."""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

import bombs
from sample_images import IMAGES
from tritonclip_export.repository.configs import read_config
from tritonclip_serve import TritonServer

sys.path.append(str(Path(__file__).parents[2] / "model_repository" / "preprocess" / "1"))

from clip_preprocess import preprocess, settings_from

GOOD = IMAGES["jpeg 4:4:4"]()
LARGE = IMAGES["tiff"]()
ATTACKS = [
    bombs.jpeg_scans(bombs.SIDE, 1000),
    bombs.jpeg_scans(bombs.SIDE, 100),
    bombs.png(bombs.SIDE, bombs.SIDE),
    bombs.bmp_rle(bombs.SIDE, bombs.SIDE),
    bombs.webp_lossless(bombs.SIDE),
]
CALLERS = 4


@pytest.fixture(scope="module")
def parameters(demo_repository: Path) -> dict[str, str]:
    config = read_config(demo_repository / "preprocess" / "config.pbtxt")
    return {key: value.string_value for key, value in config.parameters.items()}


def tensor(images: list[bytes], name: str = "image") -> grpcclient.InferInput:
    made = grpcclient.InferInput(name, [len(images), 1], "BYTES")
    return made.set_data_from_numpy(np.array(images, dtype=object).reshape(-1, 1))


def malformed(content: bytes, rows: int = 1) -> grpcclient.InferInput:
    """A BYTES tensor of which every byte is the caller's."""
    made = grpcclient.InferInput("image", [rows, 1], "BYTES")
    made._raw_content = content
    return made


@contextmanager
def repeated(address: str, ask: Callable[[grpcclient.InferenceServerClient, int], None]) -> Iterator[list[str]]:
    """`CALLERS` threads ask again and again; the statuses that they got, as they come."""
    ended, statuses = threading.Event(), []

    def run(number: int) -> None:
        with grpcclient.InferenceServerClient(address) as client:
            while not ended.is_set():
                try:
                    ask(client, number)
                    statuses.append("OK")
                except InferenceServerException as error:
                    statuses.append(error.status().rpartition(".")[2])
                number += 1

    threads = [threading.Thread(target=run, args=(number,)) for number in range(CALLERS)]
    for thread in threads:
        thread.start()
    try:
        yield statuses
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def small_images_s(address: str, expected: np.ndarray, duration_s: float) -> list[float]:
    """How long each of one caller's small images took; every answer is right."""
    took, end = [], time.monotonic() + duration_s
    with grpcclient.InferenceServerClient(address) as client:
        while time.monotonic() < end:
            begun = time.monotonic()
            pixels = client.infer("preprocess", [tensor([GOOD])], client_timeout=30).as_numpy("pixels")
            took.append(time.monotonic() - begun)
            assert np.array_equal(pixels[0], expected)
    return took


def decoders() -> list[int]:
    """The decoder processes below this one."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        with suppress(psutil.Error):
            is_decoder = any("decoder_process.py" in word for word in process.info["cmdline"] or ())
            if is_decoder and os.getpid() in [parent.pid for parent in process.parents()]:
                found.append(process.pid)
    return found


def test_bombs_do_not_hold_up_small_images(server: TritonServer, parameters: dict[str, str]) -> None:
    expected = preprocess(GOOD, settings_from(parameters))
    small_images_s(server.grpc_address, expected, 0.5)
    alone = small_images_s(server.grpc_address, expected, 2.0)

    def attack(client: grpcclient.InferenceServerClient, number: int) -> None:
        client.infer("preprocess", [tensor([ATTACKS[number % len(ATTACKS)]])], client_timeout=60)

    with repeated(server.grpc_address, attack) as statuses:
        time.sleep(1.0)
        attacked = small_images_s(server.grpc_address, expected, 6.0)
    # The decoders have lower priority than the rest, and get the cores that are idle, of which there may be none.
    assert statistics.median(attacked) < 3 * statistics.median(alone) + 0.02
    assert max(attacked) < 2.0
    # A fast machine decodes some of them within the limits.
    assert "INVALID_ARGUMENT" in set(statuses) <= {"INVALID_ARGUMENT", "UNAVAILABLE", "OK"}
    assert len(statuses) > CALLERS


def test_a_malformed_tensor_fails_alone(server: TritonServer, parameters: dict[str, str]) -> None:
    contents = [b"\xff\xff\xff\x7fshort", b"\x05\x00\x00\x00ab", b"\x01\x00", b"\x01\x00\x00\x00a\x01\x00\x00\x00b"]

    def attack(client: grpcclient.InferenceServerClient, number: int) -> None:
        client.infer("embed_image", [malformed(contents[number % len(contents)])], client_timeout=30)

    expected = preprocess(GOOD, settings_from(parameters))
    with repeated(server.grpc_address, attack) as statuses:
        assert small_images_s(server.grpc_address, expected, 2.0)
    assert set(statuses) == {"INVALID_ARGUMENT"}


@pytest.mark.parametrize("count", [0, 33])
def test_the_number_of_images_is_limited(server: TritonServer, count: int) -> None:
    with grpcclient.InferenceServerClient(server.grpc_address) as client:
        with pytest.raises(InferenceServerException, match="1 to 32 are allowed; .* --max-image-batch of") as caught:
            client.infer("preprocess", [tensor([GOOD] * count)], client_timeout=30)
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
        pixels = client.infer("preprocess", [tensor([GOOD] * 32)], client_timeout=30).as_numpy("pixels")
    assert pixels.shape[0] == 32
    assert np.array_equal(pixels, np.broadcast_to(pixels[0], pixels.shape))


def test_images_of_all_kinds_in_one_request_are_answered_in_order(
    server: TritonServer, parameters: dict[str, str]
) -> None:
    images = [IMAGES[kind]() for kind in ("jpeg 4:4:4", "tiff", "png", "gif", "webp", "bmp", "jpeg progressive")]
    with grpcclient.InferenceServerClient(server.grpc_address) as client:
        pixels = client.infer("preprocess", [tensor(images)], client_timeout=30).as_numpy("pixels")
    expected = np.stack([preprocess(encoded, settings_from(parameters)) for encoded in images])
    assert np.array_equal(pixels, expected)


def test_killed_decoders_lose_no_request(server: TritonServer, parameters: dict[str, str]) -> None:
    expected = preprocess(LARGE, settings_from(parameters))
    with grpcclient.InferenceServerClient(server.grpc_address) as client:
        for _ in range(5):
            running = decoders()
            assert len(running) >= int(parameters["decoder_processes"])
            for process in running:
                os.kill(process, signal.SIGKILL)
            pixels = client.infer("preprocess", [tensor([LARGE])], client_timeout=30).as_numpy("pixels")
            assert np.array_equal(pixels[0], expected)
            deadline = time.monotonic() + 10
            while len(decoders()) < len(running) and time.monotonic() < deadline:
                client.infer("preprocess", [tensor([LARGE] * 4)], client_timeout=30)


def test_no_decoder_is_left_behind(demo_repository: Path, tmp_path: Path) -> None:
    ports = {"grpc_port": 0, "http_port": 0, "metrics_port": 0}
    repository = shutil.copytree(demo_repository, tmp_path / "repository")
    before = set(decoders())
    with TritonServer(repository, **ports, log_path=tmp_path / "log"):
        made = set(decoders()) - before
        assert made
    assert not made & set(decoders())
