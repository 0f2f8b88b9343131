"""Health, entry point by entry point, through both clients and the command."""

from __future__ import annotations

import grpc
import numpy as np
import pytest

from asking import both_clients
from kserve_server import SPEC, WIDTH, Call, Server, fail, fail_first, serving
from tritonclip_client import Cause, DeadlineExceededError, ProtocolError, ServerError, ServerUnavailableError
from tritonclip_client.main import main

STANDARD = ["clip", "embed_image", "embed_text", "split_text"]
OVERLOADED = "in ensemble 'embed_image', overloaded: images wait 9 s; retry in 0.1 s"


def failing(model: str, status: grpc.StatusCode, message: str):
    """An `on_infer` that fails every call of one model."""
    return lambda call: fail(call, status, message) if call.model == model else None


@both_clients
def test_every_entry_point_is_asked(ask):
    with serving() as server:
        health = ask(server.address, lambda client: client.health())
        assert ask(server.address, lambda client: client.ready()) is True

    assert (sorted(health.entry_points), health.errors, health.spec.name) == (STANDARD, {}, "demo")
    assert sorted(server.models()) == sorted(2 * STANDARD)


@both_clients
def test_classifiers_are_found_in_the_index(ask):
    with serving(Server(classifiers=("classify_shapes", "classifier_head_shapes"))) as server:
        assert ask(server.address, lambda client: client.health()).errors == {}

    assert sorted(server.models()) == sorted([*STANDARD, "classify_shapes"])


@both_clients
def test_one_entry_point_can_be_asked_alone(ask):
    with serving(Server(not_ready=frozenset({"embed_text", "clip"}))) as server:
        assert ask(server.address, lambda client: client.ready(["embed_image"])) is True
        assert ask(server.address, lambda client: client.ready(["classify_shapes"])) is True
        assert ask(server.address, lambda client: client.ready(["embed_text"])) is False

    assert server.models() == ["embed_image", "classify_shapes"]


@both_clients
def test_no_text_is_asked_twice_because_its_answer_is_cached(ask):
    with serving() as server:
        for _ in range(2):
            ask(server.address, lambda client: client.check_ready())

    texts = [call.tensors["text"].item() for call in server.calls if "text" in call.tensors]
    assert len(set(texts)) == len(texts) == 4


@both_clients
def test_shallow_readiness_embeds_nothing(ask):
    with serving() as server:
        assert ask(server.address, lambda client: client.ready(deep=False)) is True

    assert server.calls == []


@both_clients
@pytest.mark.parametrize(
    ("server", "error", "reason"),
    [
        (Server(live=False), ServerUnavailableError, "not live"),
        (Server(not_ready=frozenset({"clip"})), ServerUnavailableError, "'clip' .* not ready"),
        (Server(answer_width=0), ProtocolError, "no unit vector"),
        (Server(spec={**SPEC, "embedding_dim": 8}), ProtocolError, r"no unit vector of 8 numbers \(shape \[1, 16\]"),
        (Server(on_infer=fail_first(99, grpc.StatusCode.INVALID_ARGUMENT)), ProtocolError, "refuses a known image"),
        (Server(on_infer=failing("split_text", grpc.StatusCode.INTERNAL, "out of ideas")), ServerError, "out of ideas"),
    ],
)
def test_what_is_not_ready_is_named(ask, server, error, reason, monkeypatch):
    if server.answer_width == 0:
        monkeypatch.setattr("kserve_server.vectors", lambda items: np.zeros((len(items), WIDTH), np.float32))
    with serving(server):
        assert ask(server.address, lambda client: client.ready()) is False
        with pytest.raises(error, match=reason):
            ask(server.address, lambda client: client.check_ready())


@both_clients
def test_a_dead_model_is_told_at_once_and_of_each_entry_point(ask):
    dead = failing("embed_text", grpc.StatusCode.INTERNAL, "Stub process 'tokenizer_0_0' is not healthy.")
    with serving(Server(on_infer=dead, not_ready=frozenset({"clip"}))) as server:
        health = ask(server.address, lambda client: client.health())

    assert {name: error.cause for name, error in health.errors.items()} == {
        "embed_text": Cause.REVIVING,
        "clip": Cause.REVIVING,
    }
    assert server.models().count("embed_text") == 1


@both_clients
def test_a_silent_entry_point_does_not_hide_the_others(ask):
    def on_infer(call: Call) -> None:
        while call.model == "clip" and call.context.is_active():
            call.context.time_remaining()

    with serving(Server(on_infer=on_infer)) as server:
        health = ask(server.address, lambda client: client.health(timeout_s=1))

    assert [(name, type(error)) for name, error in health.errors.items()] == [("clip", DeadlineExceededError)]


@both_clients
def test_an_overloaded_server_gets_a_second_chance(ask):
    with serving(Server(on_infer=fail_first(2, grpc.StatusCode.UNAVAILABLE, OVERLOADED))) as server:
        assert ask(server.address, lambda client: client.health()).errors == {}

    assert len(server.calls) == 6


def health(server: Server, *words: str) -> int:
    return main(["health", "--address", server.address, "--timeout", "2", *words])


def test_the_command_tells_each_entry_point_that_is_not_healthy(capsys):
    dead = failing("embed_text", grpc.StatusCode.INTERNAL, "Stub process 'tokenizer_0_0' is not healthy.")
    with serving(Server(on_infer=dead, not_ready=frozenset({"split_text"}))) as server:
        assert health(server) == 1
        shown = capsys.readouterr()
        assert shown.out == ""
        lines = shown.err.splitlines()
        assert [line.split(": ")[:2] for line in lines] == [["unhealthy", "embed_text"], ["unhealthy", "split_text"]]
        assert health(server, "--entry-point", "embed_image", "--entry-point", "clip") == 0
        assert "answered by embed_image, clip in" in capsys.readouterr().out


def test_the_command_calls_an_overloaded_server_overloaded_and_no_failure(capsys):
    refusing = failing("embed_image", grpc.StatusCode.UNAVAILABLE, OVERLOADED)
    with serving(Server(on_infer=refusing)) as server:
        assert health(server) == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("overloaded: embed_image: ")
    assert shown.err.count("\n") == 1
