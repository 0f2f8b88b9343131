"""Fuzzing of our own parsers: that it sees what fails, and that a second of it finds nothing."""

from __future__ import annotations

import struct
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from tritonclient.grpc import InferResult, service_pb2

from tritonclip_chaos.campaign import Context, load
from tritonclip_chaos.campaigns import parsers
from tritonclip_chaos.fuzzing import limits
from tritonclip_chaos.fuzzing.__main__ import Outcome
from tritonclip_chaos.fuzzing.targets import TARGETS
from tritonclip_chaos.records import Record
from tritonclip_client import wire
from tritonclip_client.errors import ProtocolError
from tritonclip_client.items import Item
from tritonclip_client.spec import ServingSpec

SECONDS = 1.0

needs_atheris = pytest.mark.skipif(find_spec("atheris") is None, reason=parsers.MISSING)


@needs_atheris
@pytest.mark.parametrize("name", TARGETS)
def test_a_second_of_fuzzing_finds_nothing(name: str) -> None:
    record = Record("parsers", name, 12)
    parsers._fuzz(record, name, SECONDS)
    assert record.failed == 0, record.examples
    assert record.tried > 50
    assert record.refused > 0 or name == "mend"
    # The seeds hold what is well-formed.
    assert record.answered > 0


def test_errors_that_are_not_documented_and_slow_inputs_are_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    def parse(data: bytes) -> None:
        if data == b"slow":
            end = time.thread_time() + 0.05
            while time.thread_time() < end:
                pass
        elif data != b"good":
            raise ValueError("documented") if data == b"bad" else KeyError(data.decode())

    monkeypatch.setattr("tritonclip_chaos.fuzzing.__main__.MOST_CPU_S", 0.04)
    outcome = Outcome("x", 1)
    for data in (b"good", b"bad", b"first", b"second", b"third", b"slow"):
        outcome.take(parse, (ValueError,), data)
    assert (outcome.executions, outcome.accepted, outcome.failures) == (6, 2, 3)
    assert [told.partition(":")[0] for told in outcome.faults] == ["KeyError", "KeyError", "slow"]
    assert outcome.faults["KeyError: 'first'"] == b"first".hex()
    assert limits.MOST_CPU_S == 2


def test_without_atheris_the_campaign_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(parsers, "find_spec", lambda name: None)
    records = list(load("parsers").run(Context(12, tmp_path, short=True)))
    assert len(records) == len(TARGETS)
    assert all("atheris is not installed" in record.skipped for record in records)


def test_a_spec_of_any_depth_is_one_that_cannot_be_read() -> None:
    """Found by fuzzing: RecursionError."""
    for document in ("[" * 100_000, '{"image":' * 100_000):
        with pytest.raises(ProtocolError, match="serving_spec cannot be read"):
            ServingSpec.from_json(document)


@pytest.mark.parametrize("content", [b"\x01", struct.pack("<I", 50) + b"short"])
def test_a_tensor_of_texts_that_is_cut_off_does_not_fit(content: bytes) -> None:
    """Found by fuzzing: struct.error."""
    response = service_pb2.ModelInferResponse()
    response.outputs.add(name="chunks", datatype="BYTES", shape=[1])
    response.raw_output_contents.append(content)
    with pytest.raises(ProtocolError, match="'chunks' does not fit its own shape"):
        wire.pieces(InferResult(response), [Item(0, b"text")])
