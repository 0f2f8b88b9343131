"""Baked classifiers through both clients: labels are read once, and again where the classifier was built anew."""

from __future__ import annotations

import json

import numpy as np
import pytest

from asking import both_clients
from kserve_server import Server, ranked, serving
from tritonclip_client import ClipClient, ProtocolError

IMAGES = [b"image %d" % number for number in range(9)]


def expected(labels: list[str]) -> list[list[str]]:
    return [[labels[index] for index in row] for row in ranked(IMAGES, len(labels))["class_indices"]]


def found(answers) -> list[list[str]]:
    return [[score.label for score in answer.scores] for answer in answers]


@both_clients
def test_indices_become_labels(ask):
    with serving() as server:
        answers = ask(server.address, lambda client: client.classify_baked(IMAGES, "pets"))

    scores = ranked(IMAGES, 3)
    assert found(answers) == expected(server.labels)
    np.testing.assert_array_equal(
        [[s.probability for s in answer.scores] for answer in answers], scores["probabilities"]
    )
    np.testing.assert_array_equal([[s.logit for s in answer.scores] for answer in answers], scores["logits"])


def test_labels_are_read_once_for_each_classifier():
    with serving() as server, ClipClient(server.address) as client:
        for _ in range(3):
            client.classify_baked(IMAGES, "pets")
            client.classify_baked(IMAGES, "birds")

    assert sorted(server.config_requests) == ["classify_birds", "classify_pets"]


def test_labels_are_read_again_where_the_classifier_was_built_anew():
    with serving() as server, ClipClient(server.address) as client:
        client.classify_baked(IMAGES, "pets")
        server.labels, server.version = ["Katze", "Hund"], "2"
        assert found(client.classify_baked(IMAGES, "pets")) == expected(["Katze", "Hund"])
        asked = len(server.config_requests)
        client.classify_baked(IMAGES, "pets")
        assert len(server.config_requests) == asked


NONSENSE = {
    "a class without a label": ({"class_indices": [[0, 3, 1]]}, "classes that its 3 labels do not name"),
    "below 0": ({"class_indices": [[0, -1, 1]]}, "classes that its 3 labels do not name"),
    "no class": ({"class_indices": np.zeros((1, 0), np.int32)}, "classes that its 3 labels do not name"),
    "another number of images": (
        {"class_indices": [[0, 1, 2]] * 2},
        "'class_indices' is int32 .2, 3., not int32 .1, 3.",
    ),
    "another dtype": ({"class_indices": np.zeros((1, 3), np.int64)}, "int64"),
    "scores of another shape": ({"logits": np.zeros((1, 2), np.float32)}, "'logits' is float32"),
}


@pytest.mark.parametrize(("change", "message"), NONSENSE.values(), ids=NONSENSE)
def test_answers_that_make_no_sense_are_refused(change, message, monkeypatch):
    answer = ranked(IMAGES[:1], 3)
    answer |= {name: np.array(value, np.int32) if isinstance(value, list) else value for name, value in change.items()}
    monkeypatch.setattr(Server, "_outputs", lambda self, call: answer)
    with serving() as server, ClipClient(server.address) as client, pytest.raises(ProtocolError, match=message):
        client.classify_baked(IMAGES[:1], "pets")


@pytest.mark.parametrize("labels", ["[", json.dumps({"a": 1}), json.dumps(["a", 2])])
def test_labels_that_are_no_list_of_texts_are_refused(labels, monkeypatch):
    monkeypatch.setattr("kserve_server.json.dumps", lambda value: labels if isinstance(value, list) else "{}")
    with (
        serving() as server,
        ClipClient(server.address) as client,
        pytest.raises(ProtocolError, match="the labels of the"),
    ):
        client.classify_baked(IMAGES, "pets")


def test_a_version_that_the_config_does_not_have_is_no_answer():
    """The config and the answer of two versions: labels of one must not name the classes of the other."""
    with serving() as server, ClipClient(server.address) as client:
        answer = server._answer

        def older(request, call):
            response = answer(request, call)
            response.model_version = "0"
            return response

        server._answer = older
        with pytest.raises(ProtocolError, match="version 0 answered, they are of 1"):
            client.classify_baked(IMAGES, "pets")
