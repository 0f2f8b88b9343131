"""What an ONNX graph costs, and where its nodes run, from ONNX Runtime's own profile of one run."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Shape = Sequence[int]
_FLOATS = ("float", "float16", "double", "bfloat16")
_PRODUCTS = {"MatMul", "MatMulInteger"}
_CONVOLUTIONS = {"Conv", "ConvInteger"}
_CPU = "CPUExecutionProvider"


@dataclass(frozen=True)
class Node:
    """One node as it ran: the type and shape of each input and output."""

    operator: str
    provider: str
    inputs: Sequence[tuple[str, Shape]]
    outputs: Sequence[tuple[str, Shape]]


def profile(graph: Path, batch: Any, provider: str = _CPU, *, optimized: bool = False) -> list[Node]:
    """Run `graph` once on `batch` and tell what every node did.

    Args:
        provider: of ONNX Runtime; the CPU's takes what it cannot.
        optimized: as it is served, with nodes fused; else as it stands in the file.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    options.enable_profiling = True
    with tempfile.TemporaryDirectory(prefix="tritonclip-profile-") as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(graph, options, providers=list(dict.fromkeys((provider, _CPU))))
        session.disable_fallback()
        session.run(None, {session.get_inputs()[0].name: batch})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return [_node(event["args"]) for event in events if event["name"].endswith("_kernel_time")]


def _node(facts: dict[str, Any]) -> Node:
    return Node(
        facts["op_name"], facts["provider"], *map(_tensors, (facts["input_type_shape"], facts["output_type_shape"]))
    )


def _tensors(described: Iterable[dict[str, list[int]]]) -> list[tuple[str, Shape]]:
    return [pair for tensor in described for pair in tensor.items()]


def flops(nodes: Iterable[Node]) -> int:
    """Operations of all products and convolutions; a multiply-add is two. What is element-wise does not count."""
    return sum(_flops(node) for node in nodes)


def _flops(node: Node) -> int:
    if node.operator in _PRODUCTS:
        (_, left), (_, out) = node.inputs[0], node.outputs[0]
        return 2 * math.prod(out) * left[-1]
    if node.operator == "Gemm":
        # The left one may be transposed.
        (_, left), (_, out) = node.inputs[0], node.outputs[0]
        return 2 * math.prod(left) * out[1]
    if node.operator in _CONVOLUTIONS:
        (_, kernel), (_, out) = node.inputs[1], node.outputs[0]
        return 2 * math.prod(out) * math.prod(kernel[1:])
    return 0


def strays(nodes: Iterable[Node], provider: str) -> list[str]:
    """Operators that gave floating-point tensors elsewhere than on `provider`.

    Shapes and indices may be anywhere, and so may single numbers that are made of them, such as an attention's scale.
    """
    return sorted({node.operator for node in nodes if node.provider != provider and any(map(_matters, node.outputs))})


def _matters(tensor: tuple[str, Shape]) -> bool:
    kind, shape = tensor
    return kind in _FLOATS and math.prod(shape) > 1


def weight_bytes(graph: Path) -> int:
    """Bytes of the weights that every batch reads whole: all but the tables that are only looked up in."""
    import onnx

    loaded = onnx.load(graph, load_external_data=False).graph
    tables = {node.input[0] for node in loaded.node if node.op_type == "Gather"}
    tables -= {name for node in loaded.node for name in (node.input[1:] if node.op_type == "Gather" else node.input)}
    return sum(_size(tensor) for tensor in loaded.initializer if tensor.name not in tables)


def _size(tensor: Any) -> int:
    import onnx

    item_bytes: int = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    count: int = math.prod(tensor.dims)
    return count * item_bytes
