"""The client against the real server: bad input and bad luck, each one clear error."""

from __future__ import annotations

import io
import socket
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from asking import both_clients
from tritonclip_client import (
    ClipClient,
    DeadlineExceededError,
    InvalidImageError,
    InvalidInputError,
    InvalidTextError,
    ServerError,
    ServerUnavailableError,
)
from tritonclip_client.main import main
from tritonclip_serve import TritonServer


def jpeg(seed: int, size: tuple[int, int] = (120, 90)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def huge_png_header() -> bytes:
    """A PNG that claims 50 000 x 50 000 pixels."""

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = part(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + part(b"IDAT", zlib.compress(b"\0" * 64)) + part(b"IEND", b"")


GOOD = [jpeg(seed) for seed in range(45)]
BAD = {
    "truncated JPEG": GOOD[0][: len(GOOD[0]) // 2],
    "text file": b"this is no image at all, only named like one\n",
    "huge PNG header": huge_png_header(),
}


@pytest.fixture(scope="module")
def client(server: TritonServer):
    with ClipClient(server.grpc_address, timeout_s=60) as client:
        yield client


@both_clients
@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
@pytest.mark.parametrize("position", [0, 38])
def test_a_bad_image_is_named_by_its_place_in_the_whole_list(ask, server, data, position, tmp_path):
    file = tmp_path / "bad.jpg"
    file.write_bytes(data)
    images = [*GOOD[:position], file, *GOOD[position:]]

    with pytest.raises(InvalidImageError) as caught:
        ask(server.grpc_address, lambda client: client.embed_images(images), timeout_s=60)

    assert caught.value.index == position
    assert str(caught.value).startswith(f"image[{position}] ({file}): ")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_a_bad_image_of_one_clip_request_is_named(client, data):
    with pytest.raises(InvalidImageError) as caught:
        client.similarity([GOOD[0], data], ["a", "b"])

    assert caught.value.index == 1


def test_a_bad_image_does_not_disturb_other_callers(server):
    stop = threading.Event()

    def keep_asking(seed: int) -> int:
        answers = 0
        with ClipClient(server.grpc_address, timeout_s=60, retry=False) as other:
            alone = other.embed_images(GOOD[seed : seed + 3])
            while not stop.is_set() or not answers:
                np.testing.assert_allclose(other.embed_images(GOOD[seed : seed + 3]), alone, rtol=0, atol=2e-5)
                answers += 1
        return answers

    with ThreadPoolExecutor(3) as pool, ClipClient(server.grpc_address, timeout_s=60) as client:
        others = [pool.submit(keep_asking, seed) for seed in range(3)]
        try:
            for position in (1, 20, 40):
                with pytest.raises(InvalidImageError) as caught:
                    client.embed_images([*GOOD[:position], BAD["truncated JPEG"], *GOOD[position:]])
                assert caught.value.index == position
        finally:
            stop.set()
        assert all(other.result() > 0 for other in others)


def test_an_empty_file_is_refused_by_the_client_and_empty_bytes_by_the_server(client, tmp_path):
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(InvalidImageError, match=r"^image\[1\] .*empty file"):
        client.embed_images([GOOD[0], tmp_path / "empty.jpg"])

    with pytest.raises(InvalidImageError) as caught:
        client.infer("embed_image", {"image": np.array([[GOOD[0]], [b""]], dtype=np.object_)}, ["embedding"])
    assert caught.value.index == 1


def test_invalid_utf8_is_refused_by_the_client_and_by_the_server(client):
    with pytest.raises(InvalidTextError, match=r"^text\[1\]: .*not valid UTF-8"):
        client.embed_texts(["fine", b"\xff\xfe"])

    with pytest.raises(InvalidTextError) as caught:
        client.infer("embed_text", {"text": np.array([[b"fine"], [b"\xff\xfe"]], dtype=np.object_)}, ["embedding"])
    assert caught.value.index == 1


def test_an_endless_text_is_named(client):
    texts = [*(f"text {number}" for number in range(100)), "long " * 20_000]

    with pytest.raises(InvalidTextError) as caught:
        client.embed_texts(texts)
    assert caught.value.index == 100


def test_a_request_beyond_the_server_s_limit_is_refused(client):
    images = np.array([[data] for data in GOOD], dtype=np.object_)

    with pytest.raises(InvalidInputError, match="batch"):
        client.infer("embed_image", {"image": images}, ["embedding"])


def test_a_model_that_is_not_there(client):
    with pytest.raises(ServerError, match="tritonclip export") as caught:
        client.infer("embed_sound", {"image": np.array([[GOOD[0]]], dtype=np.object_)}, ["embedding"])
    assert caught.value.status in ("NOT_FOUND", "INVALID_ARGUMENT")


@both_clients
def test_a_deadline_that_cannot_be_met(ask, server):
    # One request to a server that is at rest, which refuses none: it begins at once, and takes longer.
    images = [jpeg(0, (1000, 1000))] * 32
    with pytest.raises(DeadlineExceededError, match=r"within 0\.1 s") as caught:
        ask(server.grpc_address, lambda client: client.embed_images(images, batch_size=32, timeout_s=0.1))
    assert caught.value.exit_code == 4


@both_clients
def test_a_server_that_is_down(ask, server):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"

    with pytest.raises(ServerUnavailableError, match="tritonclip serve DIR"):
        ask(address, lambda client: client.embed_texts(["a"]), timeout_s=1)
    assert ask(address, lambda client: client.ready(timeout_s=5)) is False


def test_the_command_says_that_a_server_is_down(capsys):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        status = main(["similarity", __file__, "--text", "cat", "--address", address, "--timeout", "1"])

    captured = capsys.readouterr()
    assert (status, captured.out) == (3, "")
    assert captured.err.startswith(f"error: no server is available at {address} ")
    assert "tritonclip serve DIR" in captured.err
    assert captured.err.count("\n") == 1


def test_the_command_names_the_bad_file(server, tmp_path, capsys):
    (tmp_path / "good.jpg").write_bytes(GOOD[0])
    (tmp_path / "bad.jpg").write_bytes(BAD["text file"])
    files = [str(tmp_path / "good.jpg"), str(tmp_path / "bad.jpg")]

    status = main(["classify", *files, "--labels", "cat", "--address", server.grpc_address])

    captured = capsys.readouterr()
    assert (status, captured.out) == (2, "")
    assert captured.err.startswith(f"error: image[1] ({files[1]}): ")
    assert captured.err.count("\n") == 1


def test_after_all_that_the_server_is_ready(client):
    client.check_ready()
