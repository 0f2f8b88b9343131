"""What the calls answer, through both clients, against a real gRPC server."""

from __future__ import annotations

import math

import numpy as np
import pytest

from asking import both_clients
from kserve_server import SCALE, SPEC, WIDTH, Server, serving, softmax, vectors
from tritonclip_client import ClipClient, InvalidInputError, ProtocolError
from tritonclip_client import session as client_session

IMAGES = [b"image %d" % number for number in range(11)]
TEXTS = [f"text {number}" for number in range(15)]
TEXT_VECTORS = vectors([text.encode() for text in TEXTS])


@both_clients
@pytest.mark.parametrize("batch_size", [None, 1, 3, 100])
def test_images_of_any_number_keep_their_order(ask, batch_size):
    with serving() as server:
        result = ask(server.address, lambda client: client.embed_images(IMAGES, batch_size=batch_size))

    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, vectors(IMAGES))
    limit = min(batch_size or 8, server.image_limit)
    assert sorted(len(call.items) for call in server.calls)[1:] == [limit] * (math.ceil(len(IMAGES) / limit) - 1)


@both_clients
def test_texts_of_any_number_keep_their_order(ask):
    with serving() as server:
        result = ask(server.address, lambda client: client.embed_texts(TEXTS))

    np.testing.assert_array_equal(result, TEXT_VECTORS)
    assert sorted(len(call.items) for call in server.calls) == [3, 6, 6]


@both_clients
def test_the_result_can_be_written_to(ask):
    with serving() as server:
        result = ask(server.address, lambda client: client.embed_images(IMAGES[:1]))

    result *= 2


@both_clients
def test_files_and_iterators_give_what_lists_of_bytes_give(ask, tmp_path):
    files = [tmp_path / f"{number}.png" for number in range(len(IMAGES))]
    for file, data in zip(files, IMAGES, strict=True):
        file.write_bytes(data)
    with serving() as server:
        result = ask(server.address, lambda client: client.embed_images(str(file) for file in files))

    np.testing.assert_array_equal(result, vectors(IMAGES))


@both_clients
def test_requests_are_bounded_in_bytes(ask, monkeypatch):
    monkeypatch.setattr("tritonclip_client.flows.MAX_REQUEST_BYTES", 20)
    with serving() as server:
        result = ask(server.address, lambda client: client.embed_images(IMAGES))

    np.testing.assert_array_equal(result, vectors(IMAGES))
    assert max(len(call.items) for call in server.calls) == 2


@both_clients
def test_similarity_within_the_limits_is_one_request(ask):
    with serving() as server:
        result = ask(server.address, lambda client: client.similarity(IMAGES[:4], TEXTS[:6]))

    expected = SCALE * vectors(IMAGES[:4]) @ TEXT_VECTORS[:6].T
    assert server.models() == ["clip"]
    np.testing.assert_allclose(result.logits, expected, rtol=1e-6)
    np.testing.assert_allclose(result.probabilities, softmax(expected), rtol=1e-6)
    np.testing.assert_array_equal(result.image_features, vectors(IMAGES[:4]))
    np.testing.assert_array_equal(result.text_features, TEXT_VECTORS[:6])


@both_clients
@pytest.mark.parametrize(("images", "texts"), [(5, 2), (2, 7), (11, 15)])
def test_similarity_beyond_the_limits_is_cut_up(ask, images, texts):
    with serving() as server:
        result = ask(server.address, lambda client: client.similarity(iter(IMAGES[:images]), TEXTS[:texts]))

    expected = SCALE * vectors(IMAGES[:images]) @ TEXT_VECTORS[:texts].T
    assert "clip" not in server.models()
    np.testing.assert_allclose(result.logits, expected, rtol=1e-5)
    np.testing.assert_allclose(result.probabilities, softmax(expected), rtol=1e-5)
    np.testing.assert_array_equal(result.image_features, vectors(IMAGES[:images]))


@both_clients
def test_scores_of_many_images_are_cut_by_images(ask, monkeypatch):
    monkeypatch.setattr(client_session, "MAX_REQUEST_BYTES", 4 * (WIDTH + 2 * 3) * 4)
    with serving() as server:
        result = ask(server.address, lambda client: client.similarity(IMAGES, TEXTS[:3]))

    assert server.models().count("similarity") == 3
    np.testing.assert_allclose(result.logits, SCALE * vectors(IMAGES) @ TEXT_VECTORS[:3].T, rtol=1e-5)


@both_clients
def test_classify_ranks_the_labels(ask):
    with serving() as server:
        answers = ask(server.address, lambda client: client.classify(IMAGES[:3], TEXTS[:5], top_k=2))

    probabilities = softmax(SCALE * vectors(IMAGES[:3]) @ TEXT_VECTORS[:5].T)
    best = np.argsort(-probabilities, axis=1)[:, :2]
    assert [[score.label for score in answer.scores] for answer in answers] == [[TEXTS[j] for j in row] for row in best]
    assert answers[1].label == TEXTS[best[1, 0]]
    assert answers[1].probability == pytest.approx(probabilities[1, best[1, 0]], rel=1e-5)


@both_clients
@pytest.mark.parametrize("count", [2, 11], ids=["few images", "many images"])
def test_templates_are_averaged_as_unit_vectors(ask, count):
    labels, templates = ["cat", "dog", "eel"], ["a {}.", "the {}.", "one {} here"]
    with serving() as server:
        answers = ask(server.address, lambda client: client.classify(IMAGES[:count], labels, templates=templates))

    rows = [vectors([template.replace("{}", label).encode() for template in templates]) for label in labels]
    means = np.stack([row.mean(axis=0) / np.linalg.norm(row.mean(axis=0)) for row in rows])
    expected = softmax(SCALE * vectors(IMAGES[:count]) @ means.T)
    assert server.models()[-1] == "similarity"
    for answer, row in zip(answers, expected, strict=True):
        assert {score.label: score.probability for score in answer.scores} == pytest.approx(
            dict(zip(labels, row, strict=True)), rel=1e-5
        )


@both_clients
def test_a_named_template_reaches_the_server(ask):
    with serving() as server:
        ask(server.address, lambda client: client.classify(IMAGES[:1], ["cat"], templates="photo"))

    assert [bytes(text) for text in server.calls[0].tensors["text"].ravel()] == [b"a photo of a cat."]


def test_the_spec_is_asked_once():
    with serving() as server, ClipClient(server.address) as client:
        client.embed_images(IMAGES[:1])
        client.embed_texts(TEXTS[:1])
        spec = client.spec

    assert sorted(server.config_requests) == ["embed_image", "embed_text"]
    assert (spec.name, spec.embedding_dim, spec.image.mean) == ("demo", WIDTH, (0.5, 0.5, 0.5))
    assert (spec.text.buckets, spec.scoring.logit_scale) == ((16, 32, 77), SCALE)


@pytest.mark.parametrize(
    ("server", "problem"),
    [
        (Server(spec=None), "carries no serving_spec"),
        (Server(spec={**SPEC, "newer": 1, "text": {}}), "serving_spec cannot be read .*context_length"),
        (Server(spec={**SPEC, "image": 3}), "serving_spec cannot be read"),
        (Server(image_limit=0), "max_batch_size 0"),
        (Server(answer_width=3), r"'embedding' is float32 \[1, 3\], not float32 \[1, 16\]"),
    ],
)
def test_a_server_that_is_no_tritonclip_server_is_named(server, problem):
    with serving(server), ClipClient(server.address) as client, pytest.raises(ProtocolError, match=problem):
        client.embed_images(IMAGES[:1])


def test_unknown_keys_of_a_newer_spec_are_left_out():
    server = Server(spec={**SPEC, "newer": 1})
    with serving(server), ClipClient(server.address) as client:
        assert client.spec.name == "demo"


@both_clients
def test_infer_sends_one_request_to_any_model(ask):
    inputs = {"image_embedding": vectors(IMAGES[:2]), "text_embedding": TEXT_VECTORS[:3]}
    with serving() as server:
        answer = ask(server.address, lambda client: client.infer("similarity", inputs, ["logits"]))

    assert list(answer) == ["logits"]
    np.testing.assert_allclose(answer["logits"], SCALE * vectors(IMAGES[:2]) @ TEXT_VECTORS[:3].T, rtol=1e-6)


@both_clients
@pytest.mark.parametrize(
    "question",
    [
        lambda client: client.embed_images([]),
        lambda client: client.embed_images(["no such file"]),
        lambda client: client.embed_images([b"fine"], batch_size=0),
        lambda client: client.embed_images([b"fine"], timeout_s=0),
        lambda client: client.embed_texts([]),
        lambda client: client.embed_texts([b"\xff"]),
        lambda client: client.similarity([b"fine"], []),
        lambda client: client.similarity([b""], ["fine"]),
        lambda client: client.classify([b"fine"], []),
        lambda client: client.classify([b"fine"], ["cat"], templates="fotos"),
        lambda client: client.classify([b"fine"], ["cat"], top_k=0),
    ],
)
def test_bad_input_is_refused_before_any_request(ask, question):
    with serving() as server, pytest.raises(InvalidInputError):
        ask(server.address, question)

    assert server.calls == []
    assert server.config_requests == []


@both_clients
def test_headers_go_with_every_request(ask):
    with serving() as server:
        ask(server.address, lambda client: client.embed_images(IMAGES), headers={"key": "secret"})

    assert {call["key"] for call in server.metadata} == {"secret"}


@both_clients
def test_a_client_has_one_name_of_its_own_for_all_its_requests(ask):
    with serving() as server:
        for _ in range(2):
            ask(server.address, lambda client: client.embed_images(IMAGES))

    names = [call["tritonclip-caller"] for call in server.metadata]
    assert len(set(names)) == 2
    assert len(set(names[: len(names) // 2])) == 1
    assert all(len(name) == 16 for name in names)


@both_clients
def test_the_name_that_a_caller_gives_itself_stands(ask):
    with serving() as server:
        ask(server.address, lambda client: client.embed_images(IMAGES[:1]), headers={"Tritonclip-Caller": "shop"})

    assert [call["tritonclip-caller"] for call in server.metadata] == ["shop"]


@both_clients
def test_the_time_that_is_left_travels_with_the_request(ask):
    with serving() as server:
        ask(server.address, lambda client: client.embed_images(IMAGES[:1], timeout_s=7))

    assert 6_000_000 < server.calls[0].timeout_us < 7_000_000
