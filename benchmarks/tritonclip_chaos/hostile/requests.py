"""Malformed KServe v2 requests over gRPC, from a seed: any model's config in, requests that break its promises out."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

from tritonclient.grpc import service_pb2
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

Request: TypeAlias = service_pb2.ModelInferRequest
Break = Callable[[Request, random.Random], None]

_SIZES = (-(2**63), -1, 0, 2, 65, 2**31, 2**32, 2**60, 2**63 - 1)
_BYTES_OF = {"UINT8": 1, "BOOL": 1, "INT32": 4, "FP32": 4, "INT64": 8}
# The longest is repeated in the refusal, and a gRPC client takes in 8 KB of that.
_NAMES = ("", "\x00", "a" * 7_000, "image\x00", "../../etc/passwd", "embed_image", "输入")
_VALUES = (b"", b"\x00", b"\xff" * 3, struct.pack("<I", 2**32 - 1), struct.pack("<I", 5) + b"abc", b"\x00" * 4096)


def valid_request(config: ModelConfig, chance: random.Random) -> Request:
    """A request with every input of `config`: right shapes and types, arbitrary content."""
    request = Request(model_name=config.name)
    for tensor in config.input:
        shape = [size if size > 0 else chance.choice((1, 2, 3)) for size in tensor.dims]
        if config.max_batch_size:
            shape = [1, *shape]
        datatype = _datatype(tensor.data_type)
        request.inputs.add(name=tensor.name, datatype=datatype, shape=shape)
        request.raw_input_contents.append(_content(datatype, shape, chance))
    return request


def malformed(configs: Sequence[ModelConfig], seed: int, count: int) -> Iterator[tuple[str, Request]]:
    """`count` requests with one to three faults each, and the faults' names; the same seed gives the same ones."""
    chance = random.Random(f"requests {seed}")
    for number in range(count):
        request = valid_request(configs[number % len(configs)], chance)
        faults = chance.sample(sorted(FAULTS), chance.randint(1, 3))
        for name in faults:
            FAULTS[name](request, chance)
        yield " + ".join(faults), request


def _datatype(number: int) -> str:
    name = DataType.Name(number).removeprefix("TYPE_")
    return "BYTES" if name == "STRING" else name


def _content(datatype: str, shape: Sequence[int], chance: random.Random) -> bytes:
    count = 1
    for size in shape:
        count *= size
    if datatype == "BYTES":
        return b"".join(struct.pack("<I", 5) + b"a cat" for _ in range(count))
    if datatype == "FP32":
        return struct.pack(f"<{count}f", *(chance.uniform(-1, 1) for _ in range(count)))
    return bytes(count * _BYTES_OF.get(datatype, 4))


def _some_input(request: Request, chance: random.Random) -> Any:
    return chance.choice(request.inputs) if request.inputs else request.inputs.add()


def _shape(request: Request, chance: random.Random) -> None:
    shape = _some_input(request, chance).shape
    if shape:
        shape[chance.randrange(len(shape))] = chance.choice(_SIZES)


def _rank(request: Request, chance: random.Random) -> None:
    tensor = _some_input(request, chance)
    tensor.shape[:] = [1] * chance.choice((0, 3, 8, 100))


def _type(request: Request, chance: random.Random) -> None:
    names = ("BYTES", "FP32", "FP16", "INT64", "UINT8", "BOOL", "", "NONSENSE")
    _some_input(request, chance).datatype = chance.choice(names)


def _name(request: Request, chance: random.Random) -> None:
    _some_input(request, chance).name = chance.choice(_NAMES)


def _raw(request: Request, chance: random.Random) -> None:
    if request.raw_input_contents:
        request.raw_input_contents[chance.randrange(len(request.raw_input_contents))] = chance.choice(_VALUES)


def _raw_count(request: Request, chance: random.Random) -> None:
    if request.raw_input_contents and chance.random() < 0.5:
        request.raw_input_contents.pop()
    else:
        request.raw_input_contents.append(chance.choice(_VALUES))


def _typed_contents(request: Request, chance: random.Random) -> None:
    tensor = _some_input(request, chance)
    tensor.contents.int_contents.extend([1, 2, 3])
    tensor.contents.bytes_contents.append(b"x")
    if chance.random() < 0.5:
        del request.raw_input_contents[:]


def _missing_input(request: Request, chance: random.Random) -> None:
    if request.inputs:
        request.inputs.pop(chance.randrange(len(request.inputs)))


def _double_input(request: Request, chance: random.Random) -> None:
    request.inputs.add().CopyFrom(_some_input(request, chance))


def _not_finite(request: Request, chance: random.Random) -> None:
    for index, tensor in enumerate(request.inputs):
        if tensor.datatype == "FP32" and index < len(request.raw_input_contents):
            value = struct.pack("<f", chance.choice((float("nan"), float("inf"), -float("inf"), 3e38)))
            request.raw_input_contents[index] = value * (len(request.raw_input_contents[index]) // 4)


def _numbers_out_of_range(request: Request, chance: random.Random) -> None:
    for index, tensor in enumerate(request.inputs):
        if tensor.datatype == "INT32" and index < len(request.raw_input_contents):
            value = struct.pack("<i", chance.choice((-1, -(2**31), 2**31 - 1, 49_408)))
            request.raw_input_contents[index] = value * (len(request.raw_input_contents[index]) // 4)


def _classification(request: Request, chance: random.Random) -> None:
    names = ("embedding", "probabilities", "logits", "chunks", "labels", "input_ids", "pixels", "owner", "truncated")
    for name in (*names, "image_embedding", "text_embedding"):
        if chance.random() < 0.3:
            output = request.outputs.add(name=name)
            output.parameters["classification"].int64_param = chance.choice((-1, 0, 1, 3, 2**40))


def _unknown_output(request: Request, chance: random.Random) -> None:
    request.outputs.add(name=chance.choice(_NAMES))


def _parameters(request: Request, chance: random.Random) -> None:
    names = ("timeout", "priority", "sequence_id", "sequence_start", "shared_memory_region", "binary_data", "triton_x")
    name = chance.choice((*names, "triton_enable_empty_final_response", "tritonclip-caller"))
    parameter = request.parameters[name]
    which = chance.randrange(3)
    if which == 0:
        parameter.int64_param = chance.choice((-1, 0, 1, 2**63 - 1))
    elif which == 1:
        parameter.string_param = chance.choice(_NAMES)
    else:
        parameter.bool_param = True


def _shared_memory(request: Request, chance: random.Random) -> None:
    parameters = _some_input(request, chance).parameters
    parameters["shared_memory_region"].string_param = chance.choice(_NAMES)
    parameters["shared_memory_byte_size"].int64_param = chance.choice(_SIZES)


def _model(request: Request, chance: random.Random) -> None:
    request.model_name = chance.choice(_NAMES) if chance.random() < 0.5 else request.model_name
    request.model_version = chance.choice(("", "0", "-1", "2", "x", "9" * 30, "1\x00"))


def _identity(request: Request, chance: random.Random) -> None:
    request.id = chance.choice(("\x00", "x" * 100_000, "%n%s", "输入"))


FAULTS: dict[str, Break] = {
    "shape": _shape,
    "rank": _rank,
    "type": _type,
    "input name": _name,
    "raw content": _raw,
    "number of raw contents": _raw_count,
    "typed content": _typed_contents,
    "missing input": _missing_input,
    "input twice": _double_input,
    "NaN and infinity": _not_finite,
    "ids out of range": _numbers_out_of_range,
    "classification": _classification,
    "unknown output": _unknown_output,
    "parameters": _parameters,
    "shared memory": _shared_memory,
    "model": _model,
    "request id": _identity,
}
