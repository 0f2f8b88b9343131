"""The exported towers on a GPU, through the encoder that the server runs."""

from __future__ import annotations

import queue
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

sys.path.append(str(Path(__file__).parents[2] / "model_repository" / "image_encoder" / "1"))
import clip_onnx

HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def encode(graph: Path, batch: np.ndarray) -> np.ndarray:
    answers: queue.Queue[np.ndarray] = queue.Queue()
    clip_onnx.Encoder(graph).submit(batch, answers.put)
    return answers.get(timeout=60)


@pytest.mark.gpu
@pytest.mark.skipif(
    not HAS_CUDA, reason="this onnxruntime has no CUDA provider: install onnxruntime-gpu on a GPU machine"
)
@pytest.mark.parametrize("tower", ["image_encoder", "text_encoder"])
def test_cuda_gives_the_embeddings_of_the_cpu(tower: str, demo_repository: Path, monkeypatch) -> None:
    graph = demo_repository / tower / "1" / "model.onnx"
    generator = np.random.default_rng(0)
    if tower == "image_encoder":
        batch = generator.integers(0, 256, (16, 64, 64, 3), np.uint8)
    else:
        batch = np.full((16, 16), 320, np.int32)
        batch[:, 0], batch[:, 9:] = 49406, 0
        batch[:, 1:8] = generator.integers(1, 49406, (16, 7))
        batch[:, 8] = 49407
    on_gpu = encode(graph, batch)
    monkeypatch.setattr(clip_onnx, "_providers", lambda: ["CPUExecutionProvider"])
    on_cpu = encode(graph, batch)
    assert (on_gpu * on_cpu).sum(axis=1).min() >= 0.99999
