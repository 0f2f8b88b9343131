"""Scores of the similarity model against PyTorch's formulas."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "model_repository" / "similarity" / "1"))
from clip_scores import Scoring


def embeddings(count: int, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=(count, 16))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def test_softmax_over_the_texts() -> None:
    logits, probabilities = Scoring("softmax", 100.0, 0.0).score(embeddings(3, 0), embeddings(5, 1))
    expected = 100 * embeddings(3, 0).astype(np.float64) @ embeddings(5, 1).T
    exponentials = np.exp(expected - expected.max(axis=1, keepdims=True))
    assert np.abs(logits - expected).max() < 1e-4
    assert np.abs(probabilities - exponentials / exponentials.sum(axis=1, keepdims=True)).max() < 1e-5
    assert logits.dtype == probabilities.dtype == np.float32


def test_sigmoid_of_every_pair_with_bias() -> None:
    logits, probabilities = Scoring("sigmoid", 112.0, -16.5).score(embeddings(2, 0), embeddings(4, 1))
    expected = 112 * embeddings(2, 0).astype(np.float64) @ embeddings(4, 1).T - 16.5
    assert np.abs(probabilities - 1 / (1 + np.exp(-expected))).max() < 1e-5
    assert logits.shape == (2, 4)


def test_large_logits_do_not_overflow() -> None:
    ones = np.ones((1, 16), np.float32) / 4
    with np.errstate(over="raise"):
        for kind in ("softmax", "sigmoid"):
            _, probabilities = Scoring(kind, 1e4, 0.0).score(np.concatenate([ones, -ones]), ones)
            assert np.isfinite(probabilities).all()


@pytest.mark.parametrize(
    ("images", "texts", "message"), [(0, 2, "0 images and 2 texts"), (2, 0, "2 images and 0 texts")]
)
def test_nothing_to_score_is_an_error(images: int, texts: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scoring("softmax", 1.0, 0.0).score(embeddings(images, 0), embeddings(texts, 1))


def test_embeddings_of_two_models_are_an_error() -> None:
    with pytest.raises(ValueError, match="16 values, text embeddings 8"):
        Scoring("softmax", 1.0, 0.0).score(embeddings(1, 0), embeddings(1, 1)[:, :8])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", ["image", "text"])
def test_an_embedding_that_is_not_finite_is_named(bad: float, place: str) -> None:
    given = {"image": embeddings(3, 0), "text": embeddings(4, 1)}
    given[place][2, 5] = bad
    with pytest.raises(ValueError, match=rf"^{place}_embedding\[2\]: holds NaN or infinity; send finite numbers"):
        Scoring("softmax", 100.0, 0.0).score(**given)


def test_embeddings_whose_scores_overflow_are_named() -> None:
    images = embeddings(3, 0)
    images[1] = np.float32(1e38)
    with pytest.raises(
        ValueError, match=r"^image_embedding\[1\]: gives logits too large for float32; send embeddings of"
    ):
        Scoring("softmax", 100.0, 0.0).score(images, np.ones((2, 16), np.float32))


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_the_largest_logits_have_probabilities(kind: str) -> None:
    images, texts = np.float32([[1e18], [-1e18], [0]]), np.float32([[1e19], [-1e19], [1]])
    logits, probabilities = Scoring(kind, 10.0, 0.0).score(images, texts)
    assert np.abs(logits).max() > 9e37
    assert np.isfinite(probabilities).all()
    assert ((probabilities >= 0) & (probabilities <= 1)).all()


@pytest.mark.parametrize(("images", "texts"), [(11, 10), (1, 101), (101, 1), (1, 60)])
def test_more_scores_than_are_allowed_are_refused(images: int, texts: int) -> None:
    message = f"^{images} images x {texts} texts of 16 values; at most 100 scores and 800 values .*--max-scores of"
    with pytest.raises(ValueError, match=message):
        Scoring("softmax", 1.0, 0.0, max_scores=100).score(embeddings(images, 0), embeddings(texts, 1))


def test_as_many_scores_as_are_allowed_are_answered() -> None:
    logits, _ = Scoring("softmax", 1.0, 0.0, max_scores=100).score(embeddings(10, 0), embeddings(10, 1))
    assert logits.shape == (10, 10)


def test_an_unknown_kind_names_the_known() -> None:
    with pytest.raises(ValueError, match="'cosine'; allowed: softmax, sigmoid"):
        Scoring("cosine", 1.0, 0.0)
