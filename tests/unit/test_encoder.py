"""The ONNX runner inside the encoder models."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

sys.path.append(str(Path(__file__).parents[2] / "model_repository" / "image_encoder" / "1"))
from clip_onnx import Encoder


@pytest.fixture(scope="module")
def doubling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph that doubles float32 [batch, length]."""
    tensor = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", "length"]) for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "g", tensor[:1], tensor[1:])
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.mark.parametrize("rows", [1, 3, 4, 5, 11])
def test_slices_cover_every_row_once_and_in_order(doubling: Path, rows: int) -> None:
    batch = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)
    assert np.array_equal(Encoder(doubling, slice_batch=4).encode(batch), 2 * batch)


def test_requests_get_their_own_rows_whatever_their_shapes(doubling: Path) -> None:
    shapes = [(1, 2), (3, 2), (2, 5), (1, 5), (4, 2)]
    generator = np.random.default_rng(0)
    arrays = [generator.normal(size=shape).astype(np.float32) for shape in shapes]
    embeddings = Encoder(doubling, slice_batch=3).encode_all(arrays)
    assert len(embeddings) == len(arrays)
    assert all(np.array_equal(e, 2 * a) for e, a in zip(embeddings, arrays, strict=True))


def test_a_missing_graph_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="tritonclip export"):
        Encoder(tmp_path / "model.onnx")
