"""The exported graphs against TensorRT's documented operators, and graphs that it does not take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tritonclip_client.main import main
from tritonclip_export.engine.lint import lint, require, table
from tritonclip_export.errors import EngineError
from tritonclip_export.towers.onnx_export import OPSET


@pytest.mark.parametrize("model", ["image_encoder", "text_encoder"])
def test_the_demo(model: str, demo_repository: Path) -> None:
    assert lint(demo_repository / model / "1" / "model.onnx") == []


def test_the_command(demo_repository: Path, capsys) -> None:
    assert main(["engine", "lint", str(demo_repository)]) == 0
    assert capsys.readouterr().out.count("its operators, types and opset are among those of") == 2


def test_the_command_names_what_it_found(repository: Path, capsys) -> None:
    write(repository / "image_encoder" / "1" / "model.onnx", one("NonZero", TensorProto.FLOAT, TensorProto.INT64))
    write(repository / "text_encoder" / "1" / "model.onnx", one("Det", TensorProto.FLOAT))
    assert main(["engine", "lint", str(repository)]) == 2
    message = capsys.readouterr().err
    assert "text_encoder/1/model.onnx: operator Det" in message
    assert "image_encoder" not in message


def test_the_table_says_where_it_comes_from() -> None:
    assert "TensorRT 10.15" in table()["source"]
    assert table()["read"].startswith("2026-")
    least, most = table()["opsets"]
    assert least <= OPSET <= most
    names = {schema.name for schema in onnx.defs.get_all_schemas()}
    assert set(table()["operators"]) <= names
    for rules in ("index_inputs", "constant_inputs", "attributes"):
        assert set(table()[rules]) <= set(table()["operators"]), rules


def value(name: str, kind: int, shape: list | None = ("n", 4)) -> onnx.ValueInfoProto:
    """A tensor of the graph's; `shape` None leaves it to the inference."""
    return helper.make_tensor_value_info(name, kind, None if shape is None else list(shape))


def graph(nodes: list[onnx.NodeProto], given: list, answer: list, weights: list = ()) -> onnx.GraphProto:
    return helper.make_graph(nodes, "planted", given, answer, list(weights))


def one(operator: str, kind: int, answer: int | None = None, **attributes) -> onnx.GraphProto:
    """A graph of one node."""
    node = helper.make_node(operator, ["x"], ["y"], **attributes)
    return graph([node], [value("x", kind, ["n", 4, 4])], [value("y", answer or kind, None)])


def write(path: Path, content: onnx.GraphProto, opset: int = 20, domain: str | None = None) -> Path:
    imports = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    onnx.save(helper.make_model(content, opset_imports=imports), path)
    return path


def loop() -> onnx.GraphProto:
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Identity", ["a"], ["b"])],
        "body",
        [value("i", TensorProto.INT64, []), value("c", TensorProto.BOOL, []), value("a", TensorProto.FLOAT, [4])],
        [value("d", TensorProto.BOOL, []), value("b", TensorProto.FLOAT, [4])],
    )
    steps, going = numpy_helper.from_array(np.int64(3), "steps"), numpy_helper.from_array(np.bool_(True), "going")
    node = helper.make_node("Loop", ["steps", "going", "x"], ["y"], body=body)
    return graph([node], [value("x", TensorProto.FLOAT, [4])], [value("y", TensorProto.FLOAT, [4])], [steps, going])


def sequence() -> onnx.GraphProto:
    nodes = [
        helper.make_node("SequenceConstruct", ["x"], ["s"]),
        helper.make_node("ConcatFromSequence", ["s"], ["y"], axis=0),
    ]
    return graph(nodes, [value("x", TensorProto.FLOAT)], [value("y", TensorProto.FLOAT)])


def computed_axes() -> onnx.GraphProto:
    node = helper.make_node("ReduceL2", ["x", "axes"], ["y"])
    return graph([node], [value("x", TensorProto.FLOAT), value("axes", TensorProto.INT64, [1])], [value("y", 1, None)])


def resize() -> onnx.GraphProto:
    scales = numpy_helper.from_array(np.ones(4, np.float32), "scales")
    node = helper.make_node("Resize", ["x", "", "scales"], ["y"], mode="cubic", antialias=1)
    shape = ["n", 3, 8, 8]
    return graph([node], [value("x", 1, shape)], [value("y", 1, shape)], [scales])


def outputs() -> onnx.GraphProto:
    scale = numpy_helper.from_array(np.ones(4, np.float32), "scale")
    node = helper.make_node("LayerNormalization", ["x", "scale"], ["y", "mean"])
    return graph([node], [value("x", 1)], [value("y", 1), value("mean", 1, None)], [scale])


PLANTED: dict[str, tuple[Callable[[], onnx.GraphProto], list[str]]] = {
    "uint8 that is not cast first": (
        lambda: one("Transpose", TensorProto.UINT8, perm=[0, 2, 1]),
        ["Transpose of UINT8"],
    ),
    "uint8 that is measured": (lambda: one("Shape", TensorProto.UINT8, TensorProto.INT64), ["Shape of UINT8"]),
    "float64": (lambda: one("Exp", TensorProto.DOUBLE), ["Exp of DOUBLE", "Exp to DOUBLE"]),
    "float64 on the way": (
        lambda: one("Cast", TensorProto.FLOAT, TensorProto.DOUBLE, to=TensorProto.DOUBLE),
        ["Cast to DOUBLE"],
    ),
    "strings": (
        lambda: one("Identity", TensorProto.STRING),
        ["Identity of STRING", "Identity to STRING"],
    ),
    "a loop": (loop, ["operator Loop"]),
    "a sequence": (sequence, ["operator ConcatFromSequence", "operator SequenceConstruct"]),
    "axes from outside": (computed_axes, ["ReduceL2 with a computed input 1"]),
    "an antialiased resize": (resize, ["Resize with antialias 1", "Resize with mode cubic"]),
    "statistics of a normalisation": (outputs, ["LayerNormalization with more than one output"]),
    "an integer product": (
        lambda: graph(
            [helper.make_node("MatMul", ["x", "x"], ["y"])], [value("x", 6, [4, 4])], [value("y", 6, [4, 4])]
        ),
        ["MatMul of INT32"],
    ),
}


@pytest.mark.parametrize("case", PLANTED)
def test_what_tensorrt_does_not_take_is_named(case: str, tmp_path: Path) -> None:
    make, expected = PLANTED[case]
    assert lint(write(tmp_path / "model.onnx", make())) == expected


def test_integer_products_of_dynamic_quantization(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("MatMulInteger", ["q", "q", "z", "z"], ["y"]),
    ]
    content = graph(nodes, [value("x", 1, [4, 4])], [value("y", TensorProto.INT32, [4, 4])])
    path = write(tmp_path / "model.onnx", content)
    assert lint(path) == ["operator DynamicQuantizeLinear", "operator MatMulInteger"]
    with pytest.raises(
        EngineError, match=r"model\.onnx: operator DynamicQuantizeLinear, .*export in float32 or float16"
    ):
        require([path])


@pytest.mark.parametrize("opset", [8, 25])
def test_opsets(opset: int, tmp_path: Path) -> None:
    assert lint(write(tmp_path / "model.onnx", one("Sqrt", 1), opset)) == [f"opset {opset}, 9 to 24 are parsed"]


def test_operators_of_others(tmp_path: Path) -> None:
    node = helper.make_node("FusedMatMul", ["x", "x"], ["y"], domain="com.microsoft")
    content = graph([node], [value("x", 1, [4, 4])], [value("y", 1, [4, 4])])
    assert lint(write(tmp_path / "model.onnx", content, domain="com.microsoft")) == [
        "operator com.microsoft::FusedMatMul"
    ]


def test_a_file_that_is_no_graph(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\xff no graph")
    with pytest.raises(EngineError, match="is no ONNX graph"):
        lint(tmp_path / "model.onnx")
