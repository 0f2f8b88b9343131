"""The encoders' configs for Triton's TensorRT backend, read by Triton's own protobuf."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from fake_tensorrt import FakeToolkit
from tritonclip_client.main import main
from tritonclip_client.spec import ServingSpec as ClientSpec
from tritonclip_export.engine.build import EngineRequest, build
from tritonclip_export.errors import EngineError
from tritonclip_export.repository.config_check import require_agreement
from tritonclip_export.repository.configs import ENSEMBLES, read_config

ENCODERS = ("image_encoder", "text_encoder")
CONTRACT = {
    "image_encoder": ("pixels", "TYPE_UINT8", "image_embedding", "TYPE_FP32"),
    "text_encoder": ("input_ids", "TYPE_INT32", "text_embedding", "TYPE_FP32"),
}
DTYPES = {"TYPE_UINT8": "UINT8", "TYPE_INT32": "INT32", "TYPE_FP32": "FLOAT"}


def parsed(repository: Path, model: str) -> ModelConfig:
    """By Triton's protobuf, and not by what wrote it."""
    return text_format.Parse((repository / model / "config.pbtxt").read_text(), ModelConfig())


def tensor(one) -> tuple[str, str]:
    return one.name, one.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[one.data_type].name


@pytest.fixture(scope="module")
def before(demo_repository: Path) -> dict[str, ModelConfig]:
    return {path.parent.name: parsed(demo_repository, path.parent.name) for path in demo_repository.glob("*/*.pbtxt")}


@pytest.fixture(scope="module")
def served(demo_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import shutil

    repository = shutil.copytree(demo_repository, tmp_path_factory.mktemp("tensorrt") / "repository")
    build(EngineRequest(repository, tensorrt_runtime=True, graph_batches=[8, 1]), FakeToolkit())
    return repository


@pytest.mark.parametrize("model", ENCODERS)
def test_an_encoder_is_an_engine_on_the_gpu(model: str, served: Path) -> None:
    config = parsed(served, model)
    assert (config.platform, config.backend) == ("tensorrt_plan", "")
    assert [(group.count, group.kind) for group in config.instance_group] == [(1, ModelInstanceGroup.KIND_GPU)]
    assert dict(config.cc_model_filenames) == {"9.0": "model.plan.cc90"}
    assert (served / model / "1" / "model.plan.cc90").is_file()
    assert not config.parameters


@pytest.mark.parametrize("model", ENCODERS)
def test_what_protects_the_server_stays(model: str, served: Path, before: dict[str, ModelConfig]) -> None:
    config = parsed(served, model)
    for field in ("name", "max_batch_size", "input", "output", "dynamic_batching"):
        assert getattr(config, field) == getattr(before[model], field), field


@pytest.mark.parametrize("model", ENCODERS)
def test_the_config_agrees_with_the_onnx_and_the_contract(model: str, served: Path) -> None:
    config, graph = parsed(served, model), onnx.load(served / model / "1" / "model.onnx").graph
    (given,), (answer,) = config.input, config.output
    assert (*tensor(given), *tensor(answer)) == CONTRACT[model]
    for one, value in ((given, graph.input[0]), (answer, graph.output[0])):
        kind = value.type.tensor_type
        assert (one.name, DTYPES[tensor(one)[1]]) == (value.name, onnx.TensorProto.DataType.Name(kind.elem_type))
        assert list(one.dims) == [size.dim_value or -1 for size in kind.shape.dim[1:]]
    require_agreement(config, served / model / "1" / "model.onnx")


def test_graphs_are_captured_for_every_shape_that_is_sent(served: Path) -> None:
    image, text = (parsed(served, model).optimization.cuda for model in ENCODERS)
    assert (image.graphs, text.graphs) == (True, True)
    assert [graph.batch_size for graph in image.graph_spec] == [1, 8]
    shapes = [(graph.batch_size, list(graph.input["input_ids"].dim)) for graph in text.graph_spec]
    assert shapes == [(size, [length]) for size in (1, 8) for length in (16, 32, 77)]


def test_graphs_of_powers_of_two_without_a_list(repository: Path) -> None:
    build(EngineRequest(repository, tensorrt_runtime=True), FakeToolkit())
    graphs = parsed(repository, "image_encoder").optimization.cuda.graph_spec
    assert [graph.batch_size for graph in graphs] == [1, 2, 4, 8, 16, 32]


def test_the_ensembles_tell_the_runtime_and_nothing_else_of_them_changes(
    served: Path, before: dict[str, ModelConfig], capsys
) -> None:
    for name in ENSEMBLES:
        config = parsed(served, name)
        spec = ClientSpec.from_json(config.parameters["serving_spec"].string_value)
        assert (spec.runtime, spec.fingerprint) == ("tensorrt", config.parameters["fingerprint"].string_value)
        config.parameters["serving_spec"].CopyFrom(before[name].parameters["serving_spec"])
        assert config == before[name]
    for name in set(before) - set(ENSEMBLES) - set(ENCODERS):
        assert parsed(served, name) == before[name]
    assert main(["check", str(served)]) == 0
    out = capsys.readouterr().out
    assert "(float32, tensorrt)" in out
    assert "its engines were not compared with a GPU: none is seen here" in out


@pytest.mark.parametrize(("field", "value"), [("name", "image"), ("data_type", 11), ("dims", [48, 48, 4])])
def test_a_config_that_is_not_the_graphs_is_refused(field: str, value, repository: Path) -> None:
    config = read_config(repository / "image_encoder" / "config.pbtxt")
    if field == "dims":
        config.input[0].dims[:] = value
    else:
        setattr(config.input[0], field, value)
    with pytest.raises(EngineError, match="image_encoder is configured with .*export again"):
        require_agreement(config, repository / "image_encoder" / "1" / "model.onnx")
