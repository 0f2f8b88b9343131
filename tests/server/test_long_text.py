"""Texts longer than the context, against the real server: cut and reported, or in chunks."""

from __future__ import annotations

import numpy as np
import pytest

from asking import both_clients
from tritonclip_client import ClipClient, InvalidTextError, TruncationWarning
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
    answer = client.infer("split_text", {"texts": np.array([text.encode()], dtype=object)}, ["chunks", "owner"])
    assert answer["owner"].dtype == np.int32
    assert not answer["owner"].any()
    return [chunk.decode() for chunk in answer["chunks"]]


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
@pytest.mark.parametrize("images", [1, 40], ids=["one request", "many requests"])
def test_similarity_reports_what_was_cut(ask, server, images):
    pictures = [np.full((40, 40, 3), level, np.uint8) for level in range(images)]
    with pytest.warns(TruncationWarning, match="1 of 3 texts was longer than 77 tokens"):
        ask(server.grpc_address, lambda client: client.similarity(pictures, [LONG, "a dog", "a cat"]))


def test_many_long_texts_keep_their_order(client):
    texts = [f"Number {number} begins. {LONG}" if number % 3 == 0 else f"number {number}" for number in range(100)]
    together = client.embed_texts(texts, long_text="chunk")
    some = [0, 1, 50, 66, 99]

    alone = np.concatenate([client.embed_texts([texts[place]], long_text="chunk") for place in some])
    np.testing.assert_allclose(together[some], alone, **CLOSE)


def test_a_text_beyond_the_limit_is_named_with_its_place(client):
    with pytest.raises(InvalidTextError, match=r"text\[70\].*: 70000 bytes; at most 65536 are allowed"):
        client.embed_texts(["fine"] * 70 + ["x" * 70_000], long_text="chunk")
