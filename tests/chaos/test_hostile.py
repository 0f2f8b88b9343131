"""What hostile input is made of, and that a real server stands a little of it."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc.model_config_pb2 import ModelConfig

from kserve_server import Server, serving
from tritonclip_chaos import material
from tritonclip_chaos.__main__ import main
from tritonclip_chaos.campaign import Context, load
from tritonclip_chaos.errors import ServerFault
from tritonclip_chaos.hostile.http import KINDS
from tritonclip_chaos.hostile.images import formats, mutants, originals
from tritonclip_chaos.hostile.requests import FAULTS, malformed, valid_request
from tritonclip_chaos.hostile.segments import repair, split
from tritonclip_chaos.hostile.texts import FAMILIES, hostile_texts
from tritonclip_chaos.material import Material, take_references
from tritonclip_chaos.runner import run_campaigns
from tritonclip_serve import TritonServer

SEED = 12


def config() -> ModelConfig:
    made = ModelConfig(name="model", max_batch_size=8)
    made.input.add(name="text", data_type="TYPE_STRING", dims=[1])
    made.input.add(name="numbers", data_type="TYPE_FP32", dims=[4])
    return made


@pytest.mark.parametrize("image_format", formats())
def test_a_seed_decides_the_mutants(image_format: str) -> None:
    made = list(mutants(image_format, SEED, 30))
    assert made == list(mutants(image_format, SEED, 30))
    assert made != list(mutants(image_format, SEED + 1, 30))
    assert len(set(made)) > 20
    assert not set(made) <= set(originals(image_format, SEED))


@pytest.mark.parametrize("image_format", formats())
def test_the_parts_of_a_file_are_the_file(image_format: str) -> None:
    for original in originals(image_format, SEED):
        parts = split(image_format, original)
        assert len(parts) > 1
        assert b"".join(parts) == original
        # What is sound needs no repair.
        assert repair(image_format, parts) == original


def test_a_seed_decides_texts_and_requests() -> None:
    texts = list(hostile_texts(SEED, 40))
    assert texts == list(hostile_texts(SEED, 40)) != list(hostile_texts(SEED + 1, 40))
    assert {name for name, _ in texts} == set(FAMILIES)
    requests = list(malformed([config()], SEED, 60))
    assert requests == list(malformed([config()], SEED, 60))
    assert {fault for faults, _ in requests for fault in faults.split(" + ")} == set(FAULTS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_decides_what_is_sent_over_http(kind: str) -> None:
    draws = [[KINDS[kind](chance) for _ in range(4)] for chance in (random.Random(1), random.Random(1))]
    assert draws[0] == draws[1]
    assert all(sum(map(len, parts)) > 0 for parts in draws[0])


def test_a_request_without_a_fault_is_whole() -> None:
    request = valid_request(config(), Context(SEED, Path()).draw("one"))
    assert [list(tensor.shape) for tensor in request.inputs] == [[1, 1], [1, 4]]
    assert len(request.raw_input_contents[1]) == 16


@pytest.fixture(scope="module")
def references(server: TritonServer) -> Material:
    return take_references(server.grpc_address, SEED)


@pytest.fixture
def aimed(server: TritonServer, references: Material, tmp_path: Path) -> Context:
    """At the shared server, with few callers beside."""
    context = Context(SEED, tmp_path, address=server.grpc_address, short=True, callers=4)
    return replace(context, _material=references)


@pytest.mark.parametrize("name", ["images", "texts", "requests"])
def test_a_short_run_finds_nothing(aimed: Context, name: str) -> None:
    records = run_campaigns(aimed, [load(name)], None)
    assert len(records) > 3
    for record in records:
        assert (record.failed, record.lost, record.wrong) == (0, 0, 0), (record.case, record.examples)
        assert record.tried > 0
    assert sum(record.refused for record in records) > 0
    assert records[-1].answered > 0


def test_a_wrong_answer_is_found(aimed: Context, references: Material) -> None:
    """Against references that are another model's, every good image beside a mutant is wrong."""
    turned = replace(references, image_features=np.roll(references.image_features, 1, axis=1))
    context = replace(aimed, _material=turned, callers=4)
    records = run_campaigns(context, [load("images")], None)
    assert records[-1].wrong > 0
    assert not records[-1].met


@pytest.fixture
def nonsense() -> Iterator[str]:
    """The address of a server whose embeddings have another width than its spec says."""
    with serving(Server(answer_width=3)) as server:
        yield server.address


def test_the_command_ends_with_one_line(
    nonsense: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for many in ("IMAGES", "TEXTS"):
        monkeypatch.setattr(material, many, 1)
    monkeypatch.setattr(sys, "argv", ["tritonclip_chaos", "run", "texts", "--short", "--address", nonsense])
    assert main() == ServerFault.exit_code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: the server at {nonsense} does not answer ordinary questions")
