"""Texts beyond the context: cut and reported, or embedded in chunks, through both clients."""

from __future__ import annotations

import warnings

import grpc
import numpy as np
import pytest

import asking
from asking import ask_blocking, both_clients
from kserve_server import CONTEXT, Call, Server, fail, pieces, serving, split_answer, vectors
from tritonclip_client import (
    ClipClient,
    InvalidInputError,
    InvalidTextError,
    ProtocolError,
    ServerError,
    TruncationWarning,
    wire,
)
from tritonclip_client.items import Item
from tritonclip_client.long_texts import aggregate_chunks
from tritonclip_client.main import main

IMAGES = [b"image %d" % number for number in range(9)]
SHORT = ["a cat", "a dog", "word " * CONTEXT]
LONG = ["long " * 200, "longer " * 400, "word " * (CONTEXT + 1)]
MIXED = [SHORT[0], LONG[0], SHORT[1], LONG[1], SHORT[2], LONG[2], SHORT[0]]


def expected(texts: list[str], combine) -> np.ndarray:
    """The vectors of texts whose chunks are combined by `combine`, which takes [chunks, WIDTH]."""
    rows = []
    for text in texts:
        parts = vectors(pieces(text.encode()))
        row = combine(parts)
        rows.append(parts[0] if len(parts) == 1 else row / np.linalg.norm(row))
    return np.stack(rows)


@both_clients
def test_texts_are_cut_and_counted(ask):
    with serving() as server, pytest.warns(TruncationWarning) as caught:
        result = ask(server.address, lambda client: client.embed_texts(MIXED))

    np.testing.assert_array_equal(result, vectors([text.encode() for text in MIXED]))
    (warning,) = [entry.message for entry in caught]
    assert str(warning) == "3 of 7 texts were longer than 77 tokens and were cut"
    assert (warning.truncated, warning.total, warning.context_length) == (3, 7, 77)
    assert "split_text" not in server.models()


def test_the_count_is_kept():
    with serving() as server, ClipClient(server.address) as client:
        for texts in (MIXED, SHORT, LONG[:1]):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                client.embed_texts(texts)
        assert client.truncated_texts == 4

    assert str(caught[0].message) == "1 of 1 texts was longer than 77 tokens and was cut"


@both_clients
def test_the_warning_names_the_callers_line(ask):
    with serving() as server, pytest.warns(TruncationWarning) as caught:
        ask(server.address, lambda client: client.embed_texts(LONG))

    # A coroutine's caller is who awaits it.
    assert caught[0].filename == (__file__ if ask is ask_blocking else asking.__file__)


@both_clients
def test_what_fits_is_not_mentioned(ask):
    with serving() as server, warnings.catch_warnings():
        warnings.simplefilter("error")
        ask(server.address, lambda client: client.embed_texts(SHORT))


@both_clients
@pytest.mark.parametrize("images", [2, 9], ids=["one request", "many requests"])
def test_similarity_and_classify_report_too(ask, images):
    with serving() as server:
        with pytest.warns(TruncationWarning, match="1 of 2 texts was"):
            ask(server.address, lambda client: client.similarity(IMAGES[:images], [SHORT[0], LONG[0]]))
        templates = ["a {}", "{} " + "word " * CONTEXT]
        with pytest.warns(TruncationWarning, match="2 of 4 texts were"):
            ask(server.address, lambda client: client.classify(IMAGES[:images], ["cat", "dog"], templates=templates))


@both_clients
@pytest.mark.parametrize("aggregate", ["mean", "max"])
def test_chunks_become_one_vector_a_text(ask, aggregate):
    with serving() as server:
        result = ask(server.address, lambda client: client.embed_texts(MIXED, long_text="chunk", aggregate=aggregate))

    combine = {"mean": lambda rows: rows.mean(axis=0), "max": lambda rows: rows.max(axis=0)}[aggregate]
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected(MIXED, combine), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(result, axis=1), 1, atol=1e-6)
    assert server.models().count("split_text") == 2


@both_clients
def test_a_text_that_fits_is_embedded_as_ever(ask):
    with serving() as server:
        whole = ask(server.address, lambda client: client.embed_texts(SHORT))
        chunked = ask(server.address, lambda client: client.embed_texts(iter(SHORT), long_text="chunk"))

    np.testing.assert_array_equal(chunked, whole)


def test_opposite_chunks_have_no_mean_but_no_nan_either():
    opposite = np.array([[1, 0], [-1, 0], [0, 1]], np.float32)

    np.testing.assert_array_equal(aggregate_chunks(opposite, [0, 0, 1], "mean"), [[0, 0], [0, 1]])


@both_clients
def test_a_bad_text_keeps_its_place(ask):
    texts = [*SHORT, *SHORT, *SHORT, LONG[0]]

    def refuse(call: Call) -> None:
        if call.model == "split_text" and len(call.items) == 4:
            fail(call, grpc.StatusCode.INVALID_ARGUMENT, "text[2]: 70000 bytes; at most 65536 are allowed; shorten")

    with serving(Server(on_infer=refuse)) as server, pytest.raises(InvalidTextError) as caught:
        ask(server.address, lambda client: client.embed_texts(texts, long_text="chunk"))

    assert caught.value.index == 8


@both_clients
def test_a_piece_that_is_refused_is_its_texts_fault(ask):
    texts = [LONG[1], "bad " * 100]

    with serving() as server, pytest.raises(InvalidTextError) as caught:
        ask(server.address, lambda client: client.embed_texts(texts, long_text="chunk"))

    assert caught.value.index == 1


@both_clients
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"long_text": "split"}, "long_text is 'split'; give one of truncate, chunk"),
        ({"long_text": "chunk", "aggregate": "sum"}, "aggregate is 'sum'; give one of mean, max"),
    ],
)
def test_unknown_choices_are_refused_before_any_request(ask, options, message):
    with serving() as server, pytest.raises(InvalidInputError, match=message):
        ask(server.address, lambda client: client.embed_texts(SHORT, **options))

    assert server.calls == []
    assert server.config_requests == []


def test_a_server_without_a_splitter_says_so():
    def refuse(call: Call) -> None:
        fail(call, grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'split_text' is not found")

    with serving(Server(on_infer=refuse)) as server, pytest.raises(ServerError, match="split_text.*does not serve"):
        ask_blocking(server.address, lambda client: client.embed_texts(SHORT, long_text="chunk"))


def test_a_server_of_an_older_version_is_named():
    with (
        serving(Server(text_outputs=("embedding",))) as server,
        pytest.raises(ProtocolError, match="'truncated', it"),
    ):
        ask_blocking(server.address, lambda client: client.embed_texts(SHORT))


NONSENSE = {
    "the second text has none": ({"owner": [0, 0, 2]}, "pieces of 2 texts do not belong to them"),
    "out of order": ({"owner": [1, 0, 0]}, "pieces of 2 texts do not belong to them"),
    "one text has none": ({"owner": [0, 0, 0]}, "pieces of 2 texts do not belong to them"),
    "an owner too few": ({"owner": [0, 1]}, "pieces of 2 texts do not belong to them"),
    "a length too few": ({"lengths": [2, 1]}, "pieces of 2 texts do not belong to them"),
    "bytes are missing": ({"lengths": [1, 1, 2]}, r"uint8 \[3\], not the uint8 \[4\] that their lengths add up to"),
    "bytes are left": ({"lengths": [1, 1, 0]}, r"uint8 \[3\], not the uint8 \[2\]"),
    "a length below 0": ({"lengths": [3, -1, 1]}, "lengths add up to"),
    "another dtype": ({"chunks": np.zeros(3, np.float32)}, r"float32 \[3\], not the uint8 \[3\]"),
    "another shape": ({"chunks": np.zeros((3, 1), np.uint8)}, r"uint8 \[3, 1\], not the uint8 \[3\]"),
    "lengths of another dtype": ({"lengths": np.ones(3, np.int64)}, r"'lengths' is int64 \[3\], not int32 \[3\]"),
}


@pytest.mark.parametrize(("change", "message"), NONSENSE.values(), ids=NONSENSE)
def test_pieces_that_make_no_sense_are_refused(change, message, monkeypatch):
    answer = split_answer([[b"a", b"b"], [b"c"]])
    answer |= {
        name: np.asarray(value, answer[name].dtype if isinstance(value, list) else None)
        for name, value in change.items()
    }
    monkeypatch.setattr(Server, "_outputs", lambda self, call: answer)
    with serving() as server, pytest.raises(ProtocolError, match=message):
        ask_blocking(server.address, lambda client: client.embed_texts(SHORT[:2], long_text="chunk"))


def test_pieces_are_put_together_from_bytes():
    parts = [["käse ".encode() * 3, b""], [b"\xf0\x9f\x90\xb6", "日本".encode()]]
    with serving() as server:
        server._outputs = lambda call: split_answer(parts)
        with ClipClient(server.address) as client:
            answer = client._triton.infer("split_text", [], outputs=None)
    found = wire.pieces(answer, [Item(4, b"x", "a.txt"), Item(7, b"y")])

    assert [(item.index, item.data, item.source) for item in found] == [
        (4, parts[0][0], "a.txt"),
        (4, b"", "a.txt"),
        (7, parts[1][0], None),
        (7, parts[1][1], None),
    ]


@both_clients
@pytest.mark.parametrize(("limits", "requests"), [((2, 1 << 20), 4), ((6, 3000), 3), ((6, 1), 7)])
def test_the_splitters_own_limits_hold(ask, limits, requests):
    with serving(Server(split_limits=limits)) as server:
        result = ask(server.address, lambda client: client.embed_texts(MIXED, long_text="chunk"))

    np.testing.assert_allclose(result, expected(MIXED, lambda rows: rows.mean(axis=0)), atol=1e-6)
    assert server.models().count("split_text") == requests


def run(*words: object) -> int:
    return main([*map(str, words)])


def test_the_command_tells_in_one_line_how_many_were_cut(tmp_path, capsys):
    output = tmp_path / "out.npy"
    with serving() as server:
        words = ["--address", server.address, "--output", output, "--json"]
        assert run("embed", "--text", LONG[0], "--text", SHORT[0], "--text", LONG[1], *words) == 0

    assert capsys.readouterr().err == "warning: 2 of 3 texts were longer than 77 tokens and were cut\n"


@pytest.mark.parametrize("aggregate", ["mean", "max"])
def test_the_command_embeds_chunks(tmp_path, capsys, aggregate):
    output = tmp_path / "out.npy"
    options = ["--long-text", "chunk", "--aggregate", aggregate]
    with serving() as server, ClipClient(server.address) as client:
        assert run("embed", "--text", LONG[0], "--address", server.address, "--output", output, *options) == 0
        np.testing.assert_array_equal(
            np.load(output), client.embed_texts(LONG[:1], long_text="chunk", aggregate=aggregate)
        )

    assert capsys.readouterr().err == ""


def test_the_command_refuses_an_aggregate_that_nothing_asks_for(tmp_path, capsys):
    assert run("embed", "--text", "a", "--aggregate", "max", "--output", tmp_path / "out.npy") == 2

    assert "--aggregate max given; give it with --long-text chunk" in capsys.readouterr().err
