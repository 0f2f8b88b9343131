"""Does an encoder's config say what its ONNX file has?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from tritonclip_export.errors import EngineError

_TYPES = {"TYPE_UINT8": "UINT8", "TYPE_INT32": "INT32", "TYPE_FP32": "FLOAT"}


def require_agreement(config: ModelConfig, graph_file: Path) -> None:
    """Refuse a config whose tensors are not the graph's: names, types and sizes.

    Raises:
        EngineError: names the first that differs.
    """
    graph = onnx.load(graph_file, load_external_data=False).graph
    for tensors, values in ((config.input, graph.input), (config.output, graph.output)):
        in_config = [(one.name, _type(one), [size if size > 0 else None for size in one.dims]) for one in tensors]
        in_graph = [_of_graph(value) for value in values]
        if in_config != in_graph:
            raise EngineError(
                f"{config.name} is configured with {in_config}, {graph_file} has {in_graph}; export again"
            )


def _type(tensor: Any) -> str:
    name = str(DataType.Name(tensor.data_type))
    return _TYPES.get(name, name)


def _of_graph(value: onnx.ValueInfoProto) -> tuple[str, str, list[int | None]]:
    tensor = value.type.tensor_type
    # Behind the batch, which a config does not name.
    sizes = [size.dim_value or None for size in tensor.shape.dim[1:]]
    return value.name, onnx.TensorProto.DataType.Name(tensor.elem_type), sizes
