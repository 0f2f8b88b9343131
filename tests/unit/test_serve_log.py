"""The server's log: its file, and what is read out of it; every line here was written by tritonserver 2.51."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tritonclip_serve.diagnosis import find_failures, last_words, loaded_models
from tritonclip_serve.errors import LogFileError
from tritonclip_serve.log import ServerLog

STAMP = "1121 09:45:35.898598 8323 "

FAILURES = {
    "an exception in initialize": (
        f"E{STAMP}model_lifecycle.cc:642] \"failed to load 'embed_text' version 1: Internal: RuntimeError: the weights "
        'are\\n  not here\\n\\nAt:\\n  /r/embed_text/1/model.py(6): initialize\\n"',
        ("embed_text", "RuntimeError: the weights are not here"),
    ),
    "a traceback in the message": (
        f"E{STAMP}model_lifecycle.cc:642] \"failed to load 'tokenizer' version 1: Internal: Traceback (most recent "
        'call last):\\n  File \\"model.py\\", line 3\\nKeyError: \'vocab\'\\n"',
        ("tokenizer", "KeyError: 'vocab'"),
    ),
    "an unknown backend": (
        f"E{STAMP}model_lifecycle.cc:642] \"failed to load 'embed_text' version 1: Invalid argument: unable to find "
        "backend library for backend 'nope', try specifying runtime on the model configuration.\"",
        (
            "embed_text",
            "unable to find backend library for backend 'nope', try specifying runtime on the model configuration.",
        ),
    ),
    "no version folder": (
        f"E{STAMP}model_repository_manager.cc:724] \"failed to load model 'embed_text': at least one version must be "
        "available under the version policy of model 'embed_text'\"",
        ("embed_text", "at least one version must be available under the version policy of model 'embed_text'"),
    ),
    "a config that does not parse": (
        "[libprotobuf ERROR /tmp/text_format.cc:337] Error parsing text-format inference.ModelConfig: 1:18: String "
        "literals cannot cross line boundaries.\n"
        f"E{STAMP}model_repository_manager.cc:1460] \"Poll failed for model directory 'embed_text': failed to read "
        'text proto from r/embed_text/config.pbtxt"',
        (
            "embed_text",
            "failed to read text proto from r/embed_text/config.pbtxt (line 1, column 18: String literals cannot cross "
            "line boundaries.)",
        ),
    ),
    "no model.py, which the server never notices": (
        f"I{STAMP}pb_stub.cc:2105]  Failed to preinitialize Python stub: Python model file not found in "
        "'/r/image_encoder/1/model.py'",
        ("image_encoder", "Python model file not found in '/r/image_encoder/1/model.py'"),
    ),
    "a warm-up item that takes the server down": (
        f"E{STAMP}pb_stub.cc:714] \"Failed to process the request(s) for model 'text_encoder_0_0', message: "
        'ValueError: no good\\n\\nAt:\\n  /r/text_encoder/1/model.py(29): execute\\n"',
        ("text_encoder", "ValueError: no good"),
    ),
    "an ensemble of a model that is not there": (
        f'E{STAMP}model_repository_manager.cc:703] "Invalid argument: ensemble clip contains models that are not '
        'available or ambiguous: image_encoder"',
        ("clip", "contains models that are not available or ambiguous: image_encoder"),
    ),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failure_is_one_model_and_one_line(case):
    log, expected = FAILURES[case]
    found = [(failure.model, failure.reason) for failure in find_failures(log)]
    assert found == [expected]


def test_each_model_is_named_once_with_the_fullest_reason():
    failed = f"E{STAMP}model_lifecycle.cc:642] \"failed to load 'text_encoder' version 1: Internal: warm-up failed\""
    log = "\n".join([FAILURES["a warm-up item that takes the server down"][0], failed, failed])
    assert [str(failure) for failure in find_failures(log)] == ["model 'text_encoder' failed to load: warm-up failed"]


def test_a_bad_request_later_is_no_failure_to_load():
    started = f'I{STAMP}grpc_server.cc:2558] "Started GRPCInferenceService at 127.0.0.1:18101"\n'
    assert find_failures(started + FAILURES["a warm-up item that takes the server down"][0]) == []


def test_loaded_models():
    log = f'I{STAMP}model_lifecycle.cc:839] "successfully loaded \'embed_image\'"\nI{STAMP}x] "loading: clip:1"'
    assert loaded_models(log) == {"embed_image"}


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("I x\nerror: creating server: Internal - failed to load all models\nbye\n", "creating server: Internal"),
        (
            "tritonserver: unrecognized option '--nope'\nUsage: tritonserver [options]\n  --help\n",
            "unrecognized option",
        ),
        ("", "it wrote nothing"),
    ],
)
def test_last_words(log, expected):
    assert expected in last_words(log)


def test_a_log_is_no_link_and_nobody_elses(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("mine")
    (tmp_path / "log").symlink_to(tmp_path / "target")
    with pytest.raises(LogFileError, match=r"log \(it is a symbolic link\); give another file"):
        ServerLog(tmp_path / "log").empty()
    assert (tmp_path / "target").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file somebody else's")
def test_a_log_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    os.chown(tmp_path / "log", 12345, 12345)
    with pytest.raises(LogFileError, match="belongs to another user"):
        ServerLog(tmp_path / "log").open()


def test_a_log_is_capped_while_somebody_writes_to_it(tmp_path: Path) -> None:
    log = ServerLog(tmp_path / "log", max_bytes=1000)
    writer = log.open()
    os.write(writer, b"a" * 600)
    log.cap()
    assert (tmp_path / "log").stat().st_size == 600
    os.write(writer, b"b" * 600)
    log.mark()
    log.cap()
    os.write(writer, b"c")
    os.close(writer)
    assert (tmp_path / "log").read_bytes() == b"c"
    assert (tmp_path / "log.1").read_bytes() == b"a" * 400 + b"b" * 600
    assert log.read() == "c"


def test_a_log_on_a_full_disk_harms_nobody() -> None:
    log = ServerLog(Path("/dev/full"))
    log.empty()
    os.close(log.open())
    log.cap()
    assert not log.has_grown()
    # It reads as zeros without end.
    assert log.read() == log.tail() == ""
