"""Turns the encoders' configs to Triton's TensorRT backend; everything around them stays as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelInstanceGroup

from tritonclip_export.configs import read_config
from tritonclip_export.errors import EngineError
from tritonclip_export.spec import ServingSpec

HEADER = "# Written by `tritonclip engine build --runtime tensorrt`.\n"
PLATFORM = "tensorrt_plan"
_TYPES = {"TYPE_UINT8": "UINT8", "TYPE_INT32": "INT32", "TYPE_FP32": "FLOAT"}


def graph_batches(given: Sequence[int] | None, most: int) -> list[int]:
    """Batch sizes that get a CUDA graph: those `given`, or powers of two and the largest that is served.

    Raises:
        EngineError: one that the model does not serve.
    """
    batches = sorted(set(given if given is not None else [*(1 << power for power in range(most.bit_length())), most]))
    wrong = [batch for batch in batches if not 1 <= batch <= most]
    if wrong:
        raise EngineError(f"--graph-batches {wrong[0]} given; batches of 1 to {most} are served")
    return batches


def tensorrt_config(
    config: ModelConfig, records: Sequence[Mapping[str, Any]], spec: ServingSpec, batches: Sequence[int]
) -> ModelConfig:
    """`config` of an encoder, served by TensorRT: an engine per compute capability, and CUDA graphs.

    A graph is launched only for exactly its shape, so the text encoder has one for every batch and bucket.
    """
    made = ModelConfig()
    made.CopyFrom(config)
    made.ClearField("backend")
    made.ClearField("parameters")
    made.platform = PLATFORM
    made.instance_group.clear()
    made.instance_group.add(count=1, kind=ModelInstanceGroup.KIND_GPU)
    made.cc_model_filenames.clear()
    for record in records:
        made.cc_model_filenames[record["compute_capability"]] = Path(record["file"]).name
    cuda = made.optimization.cuda
    cuda.Clear()
    cuda.graphs = bool(batches)
    lengths = spec.text.buckets if made.input[0].name == "input_ids" else (None,)
    for batch in batches:
        for length in lengths:
            graph = cuda.graph_spec.add(batch_size=batch)
            if length is not None:
                graph.input["input_ids"].dim[:] = [length]
    return made


def to_text(config: ModelConfig) -> str:
    """As a `config.pbtxt`; `max_batch_size: 0` is written out, because Triton wants to see it."""
    zero = "" if config.max_batch_size else "max_batch_size: 0\n"
    return f"{HEADER}{text_format.MessageToString(config)}{zero}"


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


def ensembles_with(repository: Path, spec: ServingSpec) -> dict[str, ModelConfig]:
    """The ensembles that carry the serving spec, those of classifiers too, by folder, with `spec` in its place."""
    configs = {path.parent.name: read_config(path) for path in sorted(repository.glob("*/config.pbtxt"))}
    carriers = {name: config for name, config in configs.items() if "serving_spec" in config.parameters}
    for config in carriers.values():
        config.parameters["serving_spec"].string_value = spec.to_json()
    return carriers


def _type(tensor: Any) -> str:
    name = str(DataType.Name(tensor.data_type))
    return _TYPES.get(name, name)


def _of_graph(value: onnx.ValueInfoProto) -> tuple[str, str, list[int | None]]:
    tensor = value.type.tensor_type
    # Behind the batch, which a config does not name.
    sizes = [size.dim_value or None for size in tensor.shape.dim[1:]]
    return value.name, onnx.TensorProto.DataType.Name(tensor.elem_type), sizes
