"""Every error of gRPC and tritonclient becomes one of ours."""

from __future__ import annotations

import pickle

import grpc
import pytest
from tritonclient.utils import InferenceServerException

from tritonclip_client import errors
from tritonclip_client.causes import Cause

CLASSES = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidInputError,
    grpc.StatusCode.UNAVAILABLE: errors.ServerUnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceededError,
}
EXIT_CODES = {
    errors.ClipError: 1,
    errors.InvalidInputError: 2,
    errors.InvalidItemError: 2,
    errors.InvalidImageError: 2,
    errors.InvalidTextError: 2,
    errors.ServerUnavailableError: 3,
    errors.TlsError: 3,
    errors.DeadlineExceededError: 4,
    errors.ServerError: 1,
    errors.ProtocolError: 1,
}


def translated(status: str | None, message: str | None) -> errors.ClipError:
    return errors.from_triton(InferenceServerException(message, status), "10.0.0.1:8001", 2.5)


@pytest.mark.parametrize("code", grpc.StatusCode)
def test_every_grpc_status_maps(code):
    error = translated(str(code), "the details")

    assert type(error) is CLASSES.get(code, errors.ServerError)
    if isinstance(error, errors.ServerError):
        assert error.status == code.name
    if code is not grpc.StatusCode.DEADLINE_EXCEEDED:
        assert "the details" in str(error)


def test_an_error_without_status_or_message_maps():
    assert "no details" in str(translated(None, None))


@pytest.mark.parametrize(("kind", "exit_code"), EXIT_CODES.items())
def test_exit_codes(kind, exit_code):
    assert kind.exit_code == exit_code


def test_the_table_of_exit_codes_and_the_docstring_hold_the_whole_tree():
    tree = {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.ClipError)}

    assert tree == set(EXIT_CODES)
    assert errors.__doc__ is not None
    assert all(kind.__name__ in errors.__doc__ for kind in tree)


@pytest.mark.parametrize(
    ("message", "kind", "index"),
    [
        ("in ensemble 'embed_image', image[3]: truncated JPEG; send whole ones", errors.InvalidImageError, 3),
        ("image[0]: truncated JPEG; send whole ones", errors.InvalidImageError, 0),
        ("in ensemble 'clip', text[12]: truncated JPEG; send whole ones", errors.InvalidTextError, 12),
    ],
)
def test_the_item_is_read_from_the_message(message, kind, index):
    error = translated("StatusCode.INVALID_ARGUMENT", message)

    assert isinstance(error, kind)
    assert (error.index, error.reason) == (index, "truncated JPEG; send whole ones")


@pytest.mark.parametrize("message", ["context[3]: long", "images[3] is bad", "batch-size must be <= 32"])
def test_other_refusals_name_no_item(message):
    error = translated("StatusCode.INVALID_ARGUMENT", message)

    assert type(error) is errors.InvalidInputError
    assert str(error) == message


def test_a_server_that_is_down_says_where_and_what_to_check():
    message = str(translated("StatusCode.UNAVAILABLE", "Connection refused"))

    assert "10.0.0.1:8001" in message
    assert "tritonclip serve DIR" in message


def test_a_deadline_names_the_time_of_the_whole_call():
    assert "2.5 s" in str(translated("StatusCode.DEADLINE_EXCEEDED", "Deadline Exceeded"))


DOWN = "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:9: Connection refused"
CAUSES = [
    ("UNAVAILABLE", DOWN, Cause.UNREACHABLE),
    ("UNAVAILABLE", "Socket closed", Cause.UNREACHABLE),
    ("UNAVAILABLE", "Stream removed (Socket closed)", Cause.UNREACHABLE),
    ("UNKNOWN", "Stream removed", Cause.UNREACHABLE),
    ("CANCELLED", "CANCELLED", Cause.UNREACHABLE),
    ("CANCELLED", "Received RST_STREAM with error code 8", Cause.UNREACHABLE),
    ("UNAVAILABLE", "in ensemble 'clip', overloaded: 9 s of images wait; retry in 1.3 s", Cause.OVERLOADED),
    ("UNAVAILABLE", "in ensemble 'embed_text', Request timeout expired", Cause.OVERLOADED),
    ("UNAVAILABLE", "This protocol is restricted, expecting header 'triton-grpc-protocol-a'", Cause.FINAL),
    ("UNAVAILABLE", "Ssl handshake failed: SSL_ERROR_SSL: CERTIFICATE_VERIFY_FAILED", Cause.FINAL),
    ("NOT_FOUND", "Request for unknown model: 'clip' has no available versions", Cause.REVIVING),
    ("NOT_FOUND", "Request for unknown model: 'clap' is not found", Cause.FINAL),
    ("INTERNAL", "in ensemble 'clip', Stub process 'similarity_0_0' is not healthy.", Cause.REVIVING),
    (
        "INTERNAL",
        "Failed to process the request(s) for model instance 'similarity_0_0', message: ValueError: no",
        Cause.FINAL,
    ),
    (
        "INTERNAL",
        "Failed to increase the shared memory pool size for key 'a' to 9 bytes. If you are running Triton inside",
        Cause.REVIVING,
    ),
    (
        "INVALID_ARGUMENT",
        "in ensemble 'clip', incomplete string data for inference input 'text', expecting string of length 99 but "
        "only 3 bytes available",
        Cause.NEIGHBOUR,
    ),
    (
        "INVALID_ARGUMENT",
        "unexpected number of string elements 2 for inference input 'text', expecting 1",
        Cause.NEIGHBOUR,
    ),
    ("INVALID_ARGUMENT", "image[0]: overloaded: retry in 1 s; is not healthy", Cause.FINAL),
    ("INVALID_ARGUMENT", "batch-size must be <= 32 for 'embed_image'", Cause.FINAL),
    ("DEADLINE_EXCEEDED", "Deadline Exceeded", Cause.FINAL),
    ("CANCELLED", "Locally cancelled by application!", Cause.FINAL),
]


@pytest.mark.parametrize(("status", "message", "cause"), CAUSES)
def test_the_cause_is_read_from_status_and_message(status, message, cause):
    error = translated(f"StatusCode.{status}", message)

    assert error.cause is cause
    if cause in (Cause.UNREACHABLE, Cause.OVERLOADED, Cause.REVIVING):
        assert isinstance(error, errors.ServerUnavailableError)


def test_each_cause_says_something_else_and_what_to_do():
    cases = [
        ("UNAVAILABLE", DOWN),
        ("UNAVAILABLE", "overloaded: x; retry in 1.3 s"),
        ("INTERNAL", "Stub process 'a_0_0' is not healthy."),
    ]
    told = [str(translated(f"StatusCode.{status}", message)) for status, message in cases]

    assert all(word in message for word, message in zip(["no server", "more work", "not running"], told, strict=True))
    assert all(word in message for word, message in zip(["tritonclip serve", "less", "log"], told, strict=True))


@pytest.mark.parametrize(
    ("message", "seconds"),
    [("overloaded: x; retry in 1.3 s", 1.3), ("overloaded: x; retry in 12 s", 12.0), ("Request timeout expired", None)],
)
def test_the_time_to_come_back_is_read_from_the_message(message, seconds):
    assert translated("StatusCode.UNAVAILABLE", message).retry_after_s == seconds


def test_unavailable_and_server_errors_survive_pickling():
    down = pickle.loads(pickle.dumps(errors.ServerUnavailableError("down", Cause.OVERLOADED, 1.5)))
    broken = pickle.loads(pickle.dumps(errors.ServerError("broken", "INTERNAL", Cause.NEIGHBOUR)))

    assert (str(down), down.cause, down.retry_after_s) == ("down", Cause.OVERLOADED, 1.5)
    assert (str(broken), broken.status, broken.cause) == ("broken", "INTERNAL", Cause.NEIGHBOUR)


def test_item_errors_survive_pickling():
    error = pickle.loads(pickle.dumps(errors.InvalidImageError(7, "broken", "a.jpg")))

    assert (str(error), error.index, error.source) == ("image[7] (a.jpg): broken", 7, "a.jpg")
