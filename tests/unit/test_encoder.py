"""The ONNX runner inside the encoder models."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

sys.path.append(str(Path(__file__).parents[2] / "model_repository" / "image_encoder" / "1"))
from clip_onnx import Encoder, _cut


@pytest.fixture(scope="module")
def doubling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph that doubles float32 [batch, length]."""
    tensor = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", "length"]) for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "g", tensor[:1], tensor[1:])
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.mark.parametrize("threads", [0, 1, 2, 3])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8, 11, 32])
def test_slices_cover_every_row_once_and_in_order(doubling: Path, rows: int, threads: int) -> None:
    batch = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)
    assert np.array_equal(Encoder(doubling, threads=threads, slice_batch=4).encode(batch), 2 * batch)


@pytest.mark.parametrize(
    ("rows", "lanes", "sizes"), [(0, 2, []), (6, 2, [3, 3]), (20, 2, [5, 5, 5, 5]), (7, 1, [4, 3]), (3, 1, [3])]
)
def test_slices_are_even_and_small(rows: int, lanes: int, sizes: list[int]) -> None:
    assert [len(part) for part in _cut(np.zeros((rows, 2)), lanes, 5)] == sizes


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
