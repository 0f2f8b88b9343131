"""The ONNX runner inside the encoder models."""

import queue
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

sys.path.append(str(Path(__file__).parents[2] / "model_repository" / "image_encoder" / "1"))
from clip_onnx import REFUSALS, Encoder


@pytest.fixture(scope="module")
def doubling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph that doubles float32 [batch, length]."""
    tensor = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", "length"]) for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "g", tensor[:1], tensor[1:])
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def encode(encoder: Encoder, batch: np.ndarray) -> np.ndarray | Exception:
    answers: queue.Queue[np.ndarray | Exception] = queue.Queue()
    encoder.submit(batch, answers.put)
    return answers.get(timeout=10)


@pytest.mark.parametrize("threads", [0, 1, 2, 3])
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 11, 32])
def test_every_row_is_embedded_once_and_in_order(doubling: Path, rows: int, threads: int) -> None:
    batch = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)
    encoder = Encoder(doubling, threads=threads)
    assert np.array_equal(encode(encoder, batch), 2 * batch)
    encoder.close()


def test_what_the_graph_refuses_comes_back_as_the_answer(doubling: Path) -> None:
    encoder = Encoder(doubling)
    assert isinstance(encode(encoder, np.zeros((2, 2), np.int32)), REFUSALS)
    encoder.close()


def test_a_missing_graph_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="tritonclip export"):
        Encoder(tmp_path / "model.onnx")
