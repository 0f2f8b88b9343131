"""Converts the served towers to ONNX with a dynamic batch, and the text tower with a dynamic length."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnxscript import ir
from torch.export import Dim

from tritonclip_export.errors import CheckpointError
from tritonclip_export.frameworks import torch
from tritonclip_export.spec import ServingSpec
from tritonclip_export.towers.towers import FullTextTower, ImageTower, TextTower

# The newest whose every operator TensorRT 10 and 11 parse: 23 fuses attention into one operator that
# TensorRT knows from 10.14 on only.
OPSET = 20

# Operators that square what they are given.
NORMS = {
    "LayerNormalization",
    "GroupNormalization",
    "InstanceNormalization",
    "BatchNormalization",
    "LpNormalization",
    "ReduceL2",
}

# Larger weights lie beside the graph: protobuf holds them several times in memory while it writes, and cannot hold
# 2 GiB in one file at all.
MAX_SINGLE_FILE_BYTES = 100_000_000


@dataclass(frozen=True)
class Signature:
    """Names and dynamic axes of one tower: `axes` maps a dimension's index to its name."""

    input_name: str
    output_name: str
    axes: Mapping[int, str]


IMAGE = Signature("pixels", "image_embedding", {0: "batch"})
TEXT = Signature("input_ids", "text_embedding", {0: "batch", 1: "length"})
FULL_TEXT = Signature("input_ids", "text_embedding", {0: "batch"})


def export_image_tower(tower: ImageTower, spec: ServingSpec, path: Path) -> None:
    """Write the image tower: `pixels` uint8 [batch, *pixel_shape] to `image_embedding` [batch, D]."""
    example = torch.zeros(2, *spec.image.pixel_shape, dtype=torch.uint8)
    _export(tower, example, IMAGE, {0: Dim("batch", min=1)}, path)


def export_text_tower(tower: TextTower | FullTextTower, spec: ServingSpec, path: Path) -> None:
    """Write the text tower: `input_ids` int32 [batch, length] to `text_embedding` [batch, D].

    The length is dynamic where the tower takes any, else it is the context.
    """
    if not tower.any_length:
        full = torch.full((2, spec.text.context_length), spec.text.eot_id, dtype=torch.int32)
        _export(tower, full, FULL_TEXT, {0: Dim("batch", min=1)}, path)
        return
    example = torch.zeros(2, spec.text.context_length - 1, dtype=torch.int32)
    shapes = {0: Dim("batch", min=1), 1: Dim("length", min=2, max=spec.text.context_length)}
    _export(tower, example, TEXT, shapes, path)


def _export(
    tower: torch.nn.Module, example: torch.Tensor, signature: Signature, shapes: dict[int, Dim], path: Path
) -> None:
    size = sum(tensor.numel() * tensor.element_size() for tensor in (*tower.parameters(), *tower.buffers()))
    with torch.no_grad(), warnings.catch_warnings():
        # The exporter warns about its own internals; what matters is checked on the file below.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            tower,
            (example,),
            input_names=[signature.input_name],
            output_names=[signature.output_name],
            dynamic_shapes=(shapes,),
            opset_version=OPSET,
            dynamo=True,
            optimize=False,
            verbose=False,
        )
        assert program is not None
        weights = list(program.model.graph.initializers.values())
        program.optimize()
        _cast_before_anything(program.model.graph)
        _count_in_float(program.model.graph)
        program.save(path, external_data=size > MAX_SINGLE_FILE_BYTES)
    # The optimizer's rules keep the last graph that they saw for good; its weights must not stay with it.
    for value in (*weights, *program.model.graph.initializers.values()):
        value.const_value = None
    _check(path, signature)


def _cast_before_anything(graph: Any) -> None:
    """Let nothing but its Cast read a uint8 input: TensorRT documents no other operator that could, not even Shape."""
    given = graph.inputs[0]
    readers = [(node, place) for node, place in given.uses()]
    casts = [node for node, _ in readers if node.op_type == "Cast"]
    if given.dtype.name != "UINT8" or not casts:
        return
    graph.remove(casts[0])
    graph.insert_before(graph[0], casts[0])
    for node, place in readers:
        if node.op_type == "Shape":
            node.replace_input_with(place, casts[0].outputs[0])


def _count_in_float(graph: Any) -> None:
    """Let CumSum, which numbers the positions of some text towers, run in float32: TensorRT documents no integers.

    Exact, as a context has fewer than 2^24 positions.
    """
    for node in [node for node in graph if node.op_type == "CumSum"]:
        given, sums = node.inputs[0], node.outputs[0]
        if given.dtype not in (ir.DataType.INT32, ir.DataType.INT64):
            continue
        readers = list(sums.uses())
        before = ir.node("Cast", [given], attributes={"to": ir.DataType.FLOAT})
        after = ir.node("Cast", [sums], attributes={"to": given.dtype})
        before.outputs[0].shape, after.outputs[0].shape = given.shape, sums.shape
        before.outputs[0].dtype, after.outputs[0].dtype = ir.DataType.FLOAT, given.dtype
        sums.dtype = ir.DataType.FLOAT
        graph.insert_before(node, before)
        graph.insert_after(node, after)
        node.replace_input_with(0, before.outputs[0])
        for reader, place in readers:
            reader.replace_input_with(place, after.outputs[0])


def _check(path: Path, signature: Signature) -> None:
    onnx.checker.check_model(path)
    graph = onnx.load(path, load_external_data=False).graph
    names = [value.name for value in (*graph.input, *graph.output)]
    fixed = [
        name for axis, name in signature.axes.items() if not graph.input[0].type.tensor_type.shape.dim[axis].dim_param
    ]
    if names != [signature.input_name, signature.output_name] or fixed:
        raise CheckpointError(
            f"the exporter wrote tensors {names} with fixed axes {fixed or 'none'}, expected "
            f"{signature.input_name} and {signature.output_name} with all of {list(signature.axes.values())} dynamic; "
            "this architecture cannot be served"
        )
    _check_types(graph)


def _check_types(graph: onnx.GraphProto) -> None:
    """No norm may be left in float16: it overflows there, and ONNX Runtime crashes on a CPU as it loads one."""
    narrow = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT16}
    narrow |= {value.name for value in graph.value_info if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16}
    norms = [node.name for node in graph.node if node.op_type in NORMS and narrow.intersection(node.input)]
    if norms:
        raise CheckpointError(
            f"the norms {', '.join(norms[:5])} of this architecture would run in float16, where they overflow; export "
            "it with --precision fp32"
        )
