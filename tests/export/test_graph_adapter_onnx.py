"""What is served: the graph_adaptered towers as ONNX, at several batch sizes and text lengths, against PyTorch."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import adapterhub_base as base
from graph_adapter_models import GOLDEN, MEAN, MODEL_CFG, STD, VISION_WIDTH, build, export_onnx, golden
from tritonclip_export.adapters.graph import read_graph_adapter
from tritonclip_export.frameworks import torch
from tritonclip_export.towers.precision.calibrate import recording
from tritonclip_export.towers.precision.float16 import MOST_SCORE, to_float16
from tritonclip_export.towers.towers import served_towers

PIXELS = np.random.RandomState(0).randint(0, 256, (6, base.VISION["image"], base.VISION["image"], 3)).astype(np.uint8)
EMBED_DIM = base.EMBED_DIM


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def normalized(features: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(features, dim=-1).numpy()


def image_embeddings(model) -> np.ndarray:
    """In PyTorch, preprocessed as torchvision does it."""
    values = torch.from_numpy(PIXELS).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(numbers).reshape(1, 3, 1, 1) for numbers in (MEAN, STD))
    with torch.no_grad():
        return normalized(model.encode_image((values - mean) / std))


def assert_equal(served: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(served - expected).max() <= 1e-4
    assert (served * expected).sum(axis=-1).min() >= 0.99999


def image_graph_adapters(folder: Path) -> tuple[Path, ...]:
    """AdapterFusion, deep prompts and a CLIP-Adapter."""
    adapter, prompts = folder / "clip_adapter.pth", folder / "vpt.pth"
    torch.save({"fc.0.weight": noise(5, EMBED_DIM), "fc.2.weight": noise(EMBED_DIM, 5)}, adapter)
    deep = {"deep_prompt_embeddings": noise(1, 3, VISION_WIDTH, seed=1)}
    torch.save({"prompt_embeddings": noise(1, 3, VISION_WIDTH), **deep}, prompts)
    return GOLDEN / "fusion_parallel", prompts, adapter


def test_the_image_tower_with_all_that_it_can_carry(tmp_path: Path) -> None:
    model = build()
    embeddings = [image_embeddings(model)]
    for path in image_graph_adapters(tmp_path):
        read_graph_adapter(path).attach(model)
        embeddings.append(image_embeddings(model))
    tower = export_onnx(model, "image", tmp_path / "image.onnx")
    for size in (1, 3):
        assert_equal(tower(PIXELS, size), embeddings[-1])
    # Each of the three changes the embeddings by far more than is tolerated.
    assert all(np.abs(one - next_one).max() > 0.01 for one, next_one in pairwise(embeddings))


@pytest.mark.parametrize("case", ["norms", "fusion_residual"])
def test_the_text_tower_at_every_length(case: str, tmp_path: Path) -> None:
    model = build()
    read_graph_adapter(GOLDEN / case).attach(model)
    tower = export_onnx(model, "text", tmp_path / "text.onnx")
    ids, expected = base.input_ids().astype(np.int32), normalized(golden(case, "text"))
    for size in (1, 3):
        assert_equal(tower(ids, size), expected)
    for row, length in enumerate(ids.argmax(axis=1) + 1):
        assert_equal(tower(ids[row : row + 1, :length], 1), expected[row : row + 1])


def test_what_adapters_add_is_float16_too(tmp_path: Path) -> None:
    model = build()
    for path in image_graph_adapters(tmp_path):
        read_graph_adapter(path).attach(model)
    image, _ = served_towers(model, MODEL_CFG, MEAN, STD)
    pixels = torch.from_numpy(PIXELS)
    with torch.no_grad(), recording(image) as activities:
        expected = image(pixels)
    (typed,), (islands,) = to_float16([image], [activities])
    with torch.no_grad():
        assert (typed(pixels) * expected).sum(dim=-1).min() >= 0.9995
    added = [
        value
        for name, value in (*image.named_parameters(), *image.named_buffers())
        if ("adapter" in name or "prompts" in name) and "norm" not in name and not name.startswith(tuple(islands))
    ]
    assert all(activities[name].scores > MOST_SCORE for name in islands), "AdapterFusion's random scores are large"
    assert len(added) > 10
    assert {value.dtype for value in added} == {torch.float16}
