"""Baked classifiers on a real server: the same answers as the methods they stand for, without the text tower."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from classifier_command import add_classifier
from tritonclip_client import ClipClient, InvalidImageError, InvalidInputError, ServerError
from tritonclip_client.main import main
from tritonclip_serve import TritonServer

ALPHA, BETA = 3.0, 5.5


@pytest.fixture(scope="module")
def images(demo: Path) -> list[Path]:
    return sorted(path for path in (demo / "images").iterdir() if path.suffix != ".json")


@pytest.fixture(scope="module")
def labels(demo: Path) -> list[str]:
    return (demo / "labels.txt").read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def cache(labels: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """keys and values of two random shots a class."""
    folder, shots = tmp_path_factory.mktemp("cache"), 2 * len(labels)
    keys = torch.randn(shots, 64, generator=torch.Generator().manual_seed(0))
    torch.save(torch.nn.functional.normalize(keys, dim=-1).permute(1, 0), folder / "keys.pt")
    torch.save(torch.nn.functional.one_hot(torch.arange(shots) % len(labels)).half(), folder / "values.pt")
    return folder / "keys.pt", folder / "values.pt"


@pytest.fixture(scope="module")
def address(
    demo: Path, demo_repository: Path, cache: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("classifiers")
    repository = shutil.copytree(demo_repository, folder / "repository")
    file = demo / "labels.txt"
    add_classifier("build", repository, "--name", "shapes", "--labels", file, "--templates", "simple")
    add_classifier("build", repository, "--name", "all", "--labels", file, "--top-k", 100)
    options = ["--keys", cache[0], "--values", cache[1], "--alpha", ALPHA, "--beta", BETA]
    add_classifier("tip-adapter", repository, "--name", "tip", "--labels", file, *options)
    with TritonServer(repository, grpc_port=0, metrics_port=0, log_path=folder / "log") as server:
        yield server.grpc_address


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[ClipClient]:
    with ClipClient(address) as client:
        yield client


def test_the_answers_are_those_of_classify(client: ClipClient, images: list[Path], labels: list[str]) -> None:
    # Several requests in flight: their order must be kept.
    many = images * 5
    answers = client.classify_baked(many, "shapes")
    expected = client.classify(many, labels, templates="simple", top_k=5)
    assert [[s.label for s in a.scores] for a in answers] == [[s.label for s in e.scores] for e in expected]
    for answer, wanted in zip(answers, expected, strict=True):
        for score, other in zip(answer.scores, wanted.scores, strict=True):
            assert abs(score.probability - other.probability) < 1e-5
            assert abs(score.logit - other.logit) < 1e-4


def test_health_asks_classifiers_by_name(client: ClipClient) -> None:
    # The index, which has their names, is closed to callers.
    assert client.health(["classify_shapes", "classify_all", "classify_tip"]).errors == {}
    assert isinstance(client.health(["classify_nothing"]).errors["classify_nothing"], ServerError)


def test_probabilities_are_over_all_labels(client: ClipClient, images: list[Path]) -> None:
    scores = client.classify_baked(images[:1], "all")[0].scores
    assert abs(sum(score.probability for score in scores) - 1) < 1e-5
    assert len({score.label for score in scores}) == 100


def test_tip_adapter_is_its_own_formula(
    client: ClipClient, images: list[Path], labels: list[str], cache: tuple[Path, Path]
) -> None:
    answers = client.classify_baked(images, "tip")
    features = torch.from_numpy(np.array(client.embed_images(images)))
    clip_weights = torch.from_numpy(np.array(client.embed_texts(labels))).t()
    cache_keys, cache_values = torch.load(cache[0]), torch.load(cache[1]).float()
    cache_logits = ((-1) * (BETA - BETA * (features @ cache_keys))).exp() @ cache_values
    tip_logits = 100.0 * features @ clip_weights + cache_logits * ALPHA
    best = tip_logits.softmax(dim=-1).topk(5)
    for row, answer in enumerate(answers):
        assert [score.label for score in answer.scores] == [labels[index] for index in best.indices[row]]
        assert abs(answer.probability - float(best.values[row, 0])) < 1e-4
        assert abs(answer.scores[0].logit - float(tip_logits[row, best.indices[row, 0]])) < 1e-3


def test_a_bad_image_is_named_by_its_place(client: ClipClient, images: list[Path]) -> None:
    with pytest.raises(InvalidImageError, match=r"image\[11\].*are no image") as caught:
        client.classify_baked([*images, *images[:3], b"no image"], "shapes")
    assert caught.value.index == 11


def test_a_classifier_that_is_not_there(client: ClipClient, images: list[Path]) -> None:
    with pytest.raises(ServerError, match="classify_other"):
        client.classify_baked(images, "other")


def test_the_head_refuses_what_is_no_embedding(client: ClipClient) -> None:
    bad = np.full((2, 64), np.nan, np.float32)
    with pytest.raises(InvalidInputError, match=r"image_embedding\[0\]: holds NaN or infinity"):
        client.infer("classifier_head_shapes", {"image_embedding": bad}, ["logits"])


def test_indices_are_places_in_the_file(client: ClipClient, images: list[Path], labels: list[str]) -> None:
    image = np.array([[path.read_bytes()] for path in images], dtype=object)
    indices = client.infer("classify_shapes", {"image": image}, ["class_indices"])["class_indices"]
    expected = client.classify(images, labels, templates="simple", top_k=5)
    assert indices.dtype == np.int32
    assert [[labels[index] for index in row] for row in indices] == [[s.label for s in e.scores] for e in expected]


def test_a_load_test_asks_and_mixes_in_the_classifier(address: str, tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    mix = ("--mix", "embed_image=1,classify=3", "--image-set", "thumbnails", "--batch-size", "2")
    given = ["bench", "--address", address, *mix, "--duration", "2s", "--warmup", "0", "--json", str(result)]
    assert main([*given, "--classifier", "shapes"]) == 0
    record = json.loads(result.read_text())
    counts = {name: summary["requests"] for name, summary in record["results"]["by_model"].items()}
    assert set(counts) == {"embed_image", "classify_shapes"}
    assert counts["classify_shapes"] > counts["embed_image"]
    assert record["results"]["total"]["items"] == 2 * sum(counts.values())
    assert (record["plan"]["scenario"], record["plan"]["classifier"]) == ("mixed", "shapes")


def test_a_load_test_wants_to_know_which_classifier(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--address", address, "--scenario", "classify"]) == 2
    assert "has 3 classifiers: all, shapes, tip; choose one with --classifier NAME" in capsys.readouterr().err
