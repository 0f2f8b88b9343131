"""Every error of gRPC and tritonclient becomes one of ours."""

from __future__ import annotations

import pickle

import grpc
import pytest
from tritonclient.utils import InferenceServerException

from tritonclip_client import errors

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


def test_item_errors_survive_pickling():
    error = pickle.loads(pickle.dumps(errors.InvalidImageError(7, "broken", "a.jpg")))

    assert (str(error), error.index, error.source) == ("image[7] (a.jpg): broken", 7, "a.jpg")
