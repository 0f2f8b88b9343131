"""Compares a graph with what TensorRT's ONNX parser is documented to take, before a GPU is asked.

It cannot tell that TensorRT will build the graph, only that its documentation speaks against it. `operators.json` is
the documentation, with its source and date.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import onnx

from tritonclip_export.errors import EngineError

TABLE = Path(__file__).with_name("operators.json")


def lint(path: Path) -> list[str]:
    """What speaks against building `path` with TensorRT, one line each; empty where nothing does.

    Raises:
        EngineError: the file is no ONNX graph.
    """
    try:
        # Types alone are looked at, so that weights beside the file stay there.
        model = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False))
    except Exception as error:  # of onnx and protobuf, without a common base
        raise EngineError(f"{path} is no ONNX graph ({error}); export again") from error
    return sorted({*_of_model(model), *_of_graph(model.graph)})


def require(paths: Sequence[Path]) -> None:
    """Refuse graphs that `lint` finds something in.

    Raises:
        EngineError: the first findings of each.
    """
    findings = {path: found for path in paths if (found := lint(path))}
    if findings:
        told = "; ".join(f"{path}: {', '.join(found[:5])}" for path, found in findings.items())
        raise EngineError(
            f"TensorRT does not take these graphs by its documentation ({told}); export in float32 or float16 with "
            "this version, or serve them with ONNX Runtime"
        )


@cache
def table() -> Mapping[str, Any]:
    """The content of `operators.json`."""
    content: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    return content


def _of_model(model: onnx.ModelProto) -> Iterator[str]:
    least, most = table()["opsets"]
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx") and not least <= opset.version <= most:
            yield f"opset {opset.version}, {least} to {most} are parsed"
    for function in model.functions:
        yield f"function {function.domain}::{function.name}"


def _of_graph(graph: onnx.GraphProto) -> Iterator[str]:
    values = {value.name: value for value in (*graph.input, *graph.value_info, *graph.output)}
    types = {name: _type_of(value) for name, value in values.items()}
    types |= {weight.name: _name_of(weight.data_type) for weight in graph.initializer}
    fixed = {weight.name for weight in graph.initializer}
    fixed |= {name for node in graph.node if node.op_type == "Constant" for name in node.output}
    for node in graph.node:
        yield from _of_node(node, types, fixed)


def _of_node(node: onnx.NodeProto, types: Mapping[str, str], fixed: set[str]) -> Iterator[str]:
    operator = node.op_type
    if node.domain not in ("", "ai.onnx"):
        yield f"operator {node.domain}::{operator}"
        return
    if operator not in table()["operators"]:
        yield f"operator {operator}"
        return
    allowed = table()["operators"][operator].split()
    index_inputs = table()["index_inputs"].get(operator, ())
    for place, name in enumerate(node.input):
        found = types.get(name, "of unknown type")
        if name and place not in index_inputs and table()["types"].get(found) not in allowed:
            yield f"{operator} of {found}"
    for name in node.output:
        if name and types.get(name, "of unknown type") not in table()["types"]:
            yield f"{operator} to {types.get(name, 'an unknown type')}"
    for place in table()["constant_inputs"].get(operator, ()):
        if len(node.input) > place and node.input[place] and node.input[place] not in fixed:
            yield f"{operator} with a computed input {place}"
    if operator in table()["one_output"] and any(node.output[1:]):
        yield f"{operator} with more than one output"
    for attribute in node.attribute:
        given = onnx.helper.get_attribute_value(attribute)
        given = given.decode() if isinstance(given, bytes) else given
        if given not in table()["attributes"].get(operator, {}).get(attribute.name, [given]):
            yield f"{operator} with {attribute.name} {given}"


def _type_of(value: onnx.ValueInfoProto) -> str:
    if value.type.WhichOneof("value") != "tensor_type":
        return f"{value.type.WhichOneof('value') or 'unknown type'}"
    return _name_of(value.type.tensor_type.elem_type)


def _name_of(element: int) -> str:
    return str(onnx.TensorProto.DataType.Name(element))
