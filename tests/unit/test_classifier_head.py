"""The model that every baked classifier is a copy of, against PyTorch's formulas."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tritonclip_export.repository.classifier.publish import TEMPLATE
from tritonclip_export.repository.configs import read_config

sys.path.append(str(TEMPLATE / "1"))
sys.path.append(str(Path(__file__).parents[2] / "model_repository" / "similarity" / "1"))
from clip_head import Head

CLASSES, WIDTH, SHOTS = 7, 16, 12


def unit(*shape: int, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=shape)
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.save(tmp_path / "weights.npy", unit(CLASSES, WIDTH, seed=0))
    np.save(tmp_path / "bias.npy", np.linspace(-1, 1, CLASSES, dtype=np.float32))
    return tmp_path


def test_logits_are_scaled_cosines_and_a_bias(folder: Path) -> None:
    embeddings = unit(3, WIDTH, seed=1)
    expected = torch.nn.functional.linear(
        torch.from_numpy(embeddings).double(), torch.from_numpy(unit(7, 16, seed=0)).double()
    )
    expected = 40 * expected + torch.linspace(-1, 1, CLASSES)
    logits = Head(folder, 40.0).logits(embeddings)
    assert logits.dtype == np.float32
    assert np.abs(logits - expected.numpy()).max() < 1e-5


def test_the_cache_is_tip_adapters(folder: Path) -> None:
    keys, values = unit(SHOTS, WIDTH, seed=2), np.eye(CLASSES, dtype=np.float32)[np.arange(SHOTS) % CLASSES]
    np.save(folder / "cache_keys.npy", keys)
    np.save(folder / "cache_values.npy", values)
    embeddings = unit(5, WIDTH, seed=3)
    features, clip_weights = torch.from_numpy(embeddings).double(), torch.from_numpy(unit(7, 16, seed=0)).double().t()
    cache_keys, cache_values = torch.from_numpy(keys).double().t(), torch.from_numpy(values).double()
    beta, alpha = 5.5, 1.17
    cache_logits = ((-1) * (beta - beta * (features @ cache_keys))).exp() @ cache_values
    expected = 100.0 * features @ clip_weights + cache_logits * alpha + torch.linspace(-1, 1, CLASSES)
    assert np.abs(Head(folder, 100.0, alpha, beta).logits(embeddings) - expected.numpy()).max() < 3e-5


@pytest.mark.parametrize("count", [1, 3, CLASSES])
def test_the_best_come_first_and_of_equal_ones_the_first(folder: Path, count: int) -> None:
    logits = np.array([[0, 5, 1, 5, -2, 5, 3], [9, 1, 2, 3, 4, 5, 6]], np.float32)
    best = Head(folder, 1.0).best(logits, count)
    order = np.argsort(-logits, axis=1, kind="stable")[:, :count]
    assert best.class_indices.tolist() == order.tolist()
    assert best.class_indices.dtype == np.int32
    assert best.logits.tolist() == np.take_along_axis(logits, order, axis=1).tolist()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_embedding_that_is_not_finite_is_named(folder: Path, bad: float) -> None:
    embeddings = unit(3, WIDTH, seed=1)
    embeddings[2, 5] = bad
    with pytest.raises(ValueError, match=r"image_embedding\[2\]: holds NaN or infinity; send finite numbers"):
        Head(folder, 1.0).logits(embeddings)


def test_an_embedding_whose_logits_overflow_is_named(folder: Path) -> None:
    embeddings = unit(3, WIDTH, seed=1)
    embeddings[1] *= np.float32(1e38)
    with pytest.raises(
        ValueError, match=r"image_embedding\[1\]: is too large for the logits; send an embedding of unit"
    ):
        Head(folder, 100.0).logits(embeddings)


def test_the_checked_in_config_is_one_that_triton_reads() -> None:
    config = read_config(TEMPLATE / "config.pbtxt")
    assert (config.name, config.backend) == ("classifier_head", "python")
    assert [tensor.name for tensor in config.output] == ["class_indices", "probabilities", "logits"]
    assert set(config.parameters) == {"labels", "scoring", "logit_scale", "alpha", "beta"}
