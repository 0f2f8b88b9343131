"""The demo in float16 and int8 on a real server: checked, asked, and built upon like any other repository."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from classifier_command import add_classifier
from demo_accuracy import compare
from tritonclip_bench.demo import export_repository
from tritonclip_client import ClipClient
from tritonclip_client.main import main
from tritonclip_serve import TritonServer

COUNT = 80
# How many of 80 answers may be other than PyTorch's, and how far any value of an embedding may be. Of int8: about
# twice what was seen.
MOST = {"float16": (0, 1e-2), "int8": (2, 2e-2)}


@dataclass(frozen=True)
class Served:
    precision: str
    repository: Path
    address: str


@pytest.fixture(scope="module", params=[("fp16", "float16"), ("int8", "int8")], ids=lambda kind: kind[0])
def served(request: pytest.FixtureRequest, demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The demo with its adapter in one precision, and a classifier of its labels, on a server."""
    option, precision = request.param
    folder = tmp_path_factory.mktemp(option)
    repository = folder / "repository"
    export_repository(repository, option)
    add_classifier("build", repository, "--name", "shapes", "--labels", demo / "labels.txt", "--templates", "simple")
    log = folder / "server.log"
    with TritonServer(repository, grpc_port=0, metrics_port=0, log_path=log) as server:
        yield Served(precision, repository, server.grpc_address)


def test_answers_are_those_of_float32(served: Served) -> None:
    differing, distance = MOST[served.precision]
    for row in compare(served.address, COUNT):
        assert row["different_answers"] <= differing, row
        assert row["max_embedding_difference"] <= distance, row


def test_what_stands_around_the_towers_works_too(served: Served, demo: Path) -> None:
    assert main(["check", str(served.repository)]) == 0
    images = sorted(path for path in (demo / "images").iterdir() if path.suffix != ".json")
    labels = (demo / "labels.txt").read_text(encoding="utf-8").splitlines()
    with ClipClient(served.address) as client:
        assert client.spec.precision == served.precision
        embeddings = client.embed_images(images)
        asked = [answer.label for answer in client.classify(images, labels, templates="simple", top_k=1)]
        baked = [answer.label for answer in client.classify_baked(images, "shapes")]
    assert embeddings.dtype == np.float32
    assert np.allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    assert asked == baked
