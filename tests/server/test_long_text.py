"""Texts longer than the context, against the real server: cut and reported, or in chunks."""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from asking import both_clients
from tritonclip_client import ClipClient, InvalidInputError, InvalidTextError, TruncationWarning
from tritonclip_serve import TritonServer

SENTENCES = ["A small red circle stands on the left side of a grey ground. ", "A large blue square is beside it! "]
LONG = "".join(SENTENCES) * 6
SHORT = ["a red circle", "ein Käfer", ""]
# Batches of different sizes add up the same numbers in a different order.
CLOSE = {"rtol": 0, "atol": 2e-5}


@pytest.fixture(scope="module")
def client(server: TritonServer):
    with ClipClient(server.grpc_address, timeout_s=60) as client:
        yield client


def chunks_of(client: ClipClient, text: str) -> list[str]:
    answer = split(client, [text.encode()])
    assert not answer["owner"].any()
    ends = np.cumsum(answer["lengths"])
    assert ends[-1] == len(answer["chunks"])
    starts = ends - answer["lengths"]
    return [answer["chunks"][start:end].tobytes().decode() for start, end in zip(starts, ends, strict=True)]


def split(client: ClipClient, texts: list[bytes]) -> dict[str, np.ndarray]:
    answer = client.infer("split_text", {"texts": np.array(texts, dtype=object)}, ["chunks", "lengths", "owner"])
    assert [answer[name].dtype for name in ("chunks", "lengths", "owner")] == [np.uint8, np.int32, np.int32]
    return answer


def test_chunks_are_whole_sentences_that_fit(client):
    chunks = chunks_of(client, LONG)

    assert len(chunks) > 1
    assert " ".join(chunks) == LONG.strip()
    assert all(chunk.endswith((".", "!")) for chunk in chunks)
    column = np.array([[chunk.encode()] for chunk in chunks], dtype=object)
    assert not client.infer("tokenizer", {"text": column}, ["truncated"])["truncated"].any()


@both_clients
@pytest.mark.parametrize(("aggregate", "reduce"), [("mean", np.mean), ("max", np.max)])
def test_a_long_text_is_its_chunks(ask, server, client, aggregate, reduce):
    texts = [SHORT[0], LONG, SHORT[1]]
    result = ask(server.grpc_address, lambda client: client.embed_texts(texts, long_text="chunk", aggregate=aggregate))

    row = reduce(client.embed_texts(chunks_of(client, LONG)), axis=0)
    np.testing.assert_allclose(result[1], row / np.linalg.norm(row), **CLOSE)
    np.testing.assert_allclose(result[[0, 2]], client.embed_texts(SHORT[:2]), **CLOSE)


def test_a_text_that_fits_has_the_same_embedding_either_way(client):
    np.testing.assert_array_equal(client.embed_texts(SHORT, long_text="chunk"), client.embed_texts(SHORT))


def test_what_stands_at_the_end_counts_only_in_chunks(client):
    other = LONG + "A green triangle stands behind both of them."
    with pytest.warns(TruncationWarning, match="2 of 2 texts were longer than 77 tokens and were cut"):
        same = client.embed_texts([LONG, other])
    chunked = client.embed_texts([LONG, other], long_text="chunk")

    np.testing.assert_allclose(same[0], same[1], **CLOSE)
    assert np.abs(chunked[0] - chunked[1]).max() > 1e-3


@both_clients
@pytest.mark.parametrize("count", [1, 40], ids=["one request", "many requests"])
def test_similarity_reports_what_was_cut(ask, server, count):
    images = [np.full((40, 40, 3), level, np.uint8) for level in range(count)]
    with pytest.warns(TruncationWarning, match="1 of 3 texts was longer than 77 tokens"):
        ask(server.grpc_address, lambda client: client.similarity(images, [LONG, "a dog", "a cat"]))


def test_many_long_texts_keep_their_order(client):
    texts = [f"Number {number} begins. {LONG}" if number % 3 == 0 else f"number {number}" for number in range(100)]
    together = client.embed_texts(texts, long_text="chunk")
    some = [0, 1, 50, 66, 99]

    alone = np.concatenate([client.embed_texts([texts[place]], long_text="chunk") for place in some])
    np.testing.assert_allclose(together[some], alone, **CLOSE)


def test_a_text_beyond_the_limit_is_named_with_its_place(client):
    with pytest.raises(InvalidTextError, match=r"text\[70\].*: 70000 bytes; at most 65536 are allowed"):
        client.embed_texts(["fine"] * 70 + ["x" * 70_000], long_text="chunk")


def test_texts_without_a_byte_are_pieces_without_a_byte(client):
    answer = split(client, [b"", b""])

    assert (len(answer["chunks"]), answer["lengths"].tolist(), answer["owner"].tolist()) == (0, [0, 0], [0, 1])


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([b"a"] * 257, "texts has 257 rows; 1 to 256 are allowed; send several requests, or raise --max-split-rows of"),
        ([], "texts has 0 rows; 1 to 256 are allowed"),
        (
            [b"x" * 60_000] * 18,
            "texts have 1080000 bytes together; at most 1048576 are allowed; .*--max-split-bytes of",
        ),
        (
            [b"a", b"x" * 65_537],
            r"text\[1\]: 65537 bytes; at most 65536 are allowed; .*--max-text-bytes of `tritonclip",
        ),
        ([b"a", b"\xff"], r"text\[1\]: bytes that are not UTF-8"),
        ([b"&" + b"amp;" * 10_000], r"text\[0\]: HTML entities or wrongly decoded letters are nested in more layers"),
    ],
)
def test_what_splitting_may_cost_is_bounded(client, texts, message):
    with pytest.raises(InvalidInputError, match=message):
        split(client, texts)
    assert chunks_of(client, "still here") == ["still here"]


def test_a_long_text_does_not_hold_up_a_short_one(client):
    """One caller's longest request, of texts that take the most time; another one's five bytes come back meanwhile."""
    heavy = ["Ã©â€™" * 5400] * 16
    with ThreadPoolExecutor() as pool:
        long = pool.submit(split, client, [text.encode() for text in heavy])
        waits = []
        while not long.done():
            began = time.monotonic()
            assert chunks_of(client, "a dog") == ["a dog"]
            waits.append(time.monotonic() - began)
        assert len(long.result()["lengths"]) > 1000
    assert len(waits) > 10
    assert statistics.median(waits) < 0.5
