"""`tritonclip configure`: configs as Triton's protobuf reads them, against the ONNX files, and nothing half done."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from configuring import configure, content, parsed
from fake_tensorrt import FakeToolkit
from tritonclip_client.main import main
from tritonclip_client.spec import ServingSpec as ClientSpec
from tritonclip_export.engine.build import EngineRequest, build
from tritonclip_export.repository.config_check import require_agreement
from tritonclip_export.repository.configs import ENSEMBLES
from tritonclip_export.repository.configure import settings_of
from tritonclip_export.repository.manifest import read_manifest
from tritonclip_export.settings import Settings

ENCODERS = ("image_encoder", "text_encoder")
DOORS = ("preprocess", "tokenizer")
LABELS = ["a red circle", "a blue square"]


@pytest.mark.parametrize("model", ENCODERS)
def test_the_containers_own_onnx_runtime_on_a_gpu(model: str, repository: Path) -> None:
    before = parsed(repository)[model]
    config = configure(repository, "--runtime", "onnxruntime", "--encoder-instances", "2")[model]
    assert (config.backend, config.platform, config.default_model_filename) == ("onnxruntime", "", "model.onnx")
    assert (repository / model / "1" / config.default_model_filename).is_file()
    assert [(group.count, group.kind) for group in config.instance_group] == [(2, ModelInstanceGroup.KIND_GPU)]
    accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert [(one.name, dict(one.parameters)) for one in accelerators] == [("cuda", {"use_tf32": "0"})]
    assert {key: value.string_value for key, value in config.parameters.items()} == {"cudnn_conv_algo_search": "1"}
    assert config.optimization.input_pinned_memory.enable
    assert config.optimization.output_pinned_memory.enable
    for field in ("name", "max_batch_size", "input", "output"):
        assert getattr(config, field) == getattr(before, field), field
    require_agreement(config, repository / model / "1" / "model.onnx")


def test_a_gpu_is_warmed_up_with_the_least_and_the_most_of_every_shape(repository: Path) -> None:
    configs = configure(repository, "--runtime", "onnxruntime", "--max-image-batch", "8")
    images, texts = (configs[model].model_warmup for model in ENCODERS)
    assert [(one.batch_size, one.inputs["pixels"].input_data_file) for one in images] == [
        (1, "pixels"),
        (8, "pixels"),
    ]
    sent = [(one.batch_size, list(one.inputs["input_ids"].dims), one.inputs["input_ids"].zero_data) for one in texts]
    assert sent == [
        *((batch, [16], False) for batch in (1, 64)),
        *((batch, [length], True) for length in (32, 77) for batch in (1, 64)),
    ]


def test_there_and_back_again_is_where_it_was(repository: Path) -> None:
    before, settings = parsed(repository), settings_of(repository, read_manifest(repository))
    configure(repository, "--runtime", "onnxruntime", "--queue-delay-us", "500", "--encoder-instances", "3")
    assert configure(repository, "--runtime", "onnxruntime-python") == before
    assert settings_of(repository, read_manifest(repository)) == settings


def test_the_runtime_is_told_to_clients_and_changes_no_fingerprint(repository: Path, capsys) -> None:
    before = parsed(repository)
    after = configure(repository, "--runtime", "onnxruntime")
    for name in ENSEMBLES:
        spec = ClientSpec.from_json(after[name].parameters["serving_spec"].string_value)
        assert spec.runtime == "onnxruntime"
        assert after[name].parameters["fingerprint"] == before[name].parameters["fingerprint"]
    assert main(["check", str(repository)]) == 0
    assert "(float32, onnxruntime)" in capsys.readouterr().out


def test_an_export_can_be_of_that_runtime_and_has_the_same_fingerprint(
    demo: Path, demo_repository: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    given = ["--adapter", str(demo / "adapter"), "--name", "demo", "--runtime", "onnxruntime", "--release", "26.04"]
    assert main(["export", str(demo / "checkpoint"), str(out), *given]) == 0
    made, default = read_manifest(out), read_manifest(demo_repository)
    assert made["spec"] == {**default["spec"], "runtime": "onnxruntime"}
    assert {**made["settings"], "runtime": "onnxruntime-python", "release": "24.10"} == default["settings"]
    again = shutil.copytree(demo_repository, tmp_path / "again")
    assert configure(again, "--runtime", "onnxruntime", "--release", "26.04") == parsed(out)


def test_queues_are_bounded_by_number_only_where_the_server_can(repository: Path) -> None:
    def sizes(configs: dict[str, ModelConfig]) -> list[int]:
        return [configs[name].dynamic_batching.default_queue_policy.max_queue_size for name in ENCODERS]

    assert sizes(parsed(repository)) == [0] * 2
    assert sizes(configure(repository, "--release", "26.01", "--max-queue-size", "9")) == [0] * 2
    assert sizes(configure(repository, "--release", "26.02")) == [9] * 2
    assert sizes(configure(repository, "--max-queue-size", "64")) == [64] * 2


def test_the_models_own_queues_are_bounded_by_time_number_and_bytes(repository: Path) -> None:
    configs = configure(repository, "--queue-seconds", "1.5", "--max-queue-size", "64", "--queue-bytes", "1000000")
    for name in (*DOORS, *ENCODERS):
        parameters = configs[name].parameters
        assert parameters["queue_seconds"].string_value == "1.5", name
        assert parameters["max_queue_size"].string_value == "64", name
        assert parameters["queue_bytes"].string_value == "1000000", name
    policies = [configs[name].dynamic_batching.default_queue_policy for name in ENCODERS]
    assert [policy.default_timeout_microseconds for policy in policies] == [1_500_000] * 2
    assert all(policy.allow_timeout_override for policy in policies)
    assert {policy.timeout_action for policy in policies} == {0}  # REJECT


def test_a_door_is_never_batched_by_triton(repository: Path) -> None:
    """There a malformed tensor would fail every request of its batch, and on 2.51 requests would wait for nothing."""
    for runtime in ("onnxruntime-python", "onnxruntime"):
        configs = configure(repository, "--runtime", runtime)
        for name in DOORS:
            assert not configs[name].HasField("dynamic_batching")
            assert (configs[name].max_batch_size, configs[name].instance_group[0].count) == (0, 1)
        policies = [configs[name].dynamic_batching.default_queue_policy for name in ENCODERS]
        assert all(policy.allow_timeout_override for policy in policies)


def test_a_delay_is_of_the_towers_on_a_gpu_alone(repository: Path) -> None:
    configs = configure(repository, "--runtime", "onnxruntime", "--queue-delay-us", "300")
    delays = {name: config.dynamic_batching.max_queue_delay_microseconds for name, config in configs.items()}
    assert {name for name, delay in delays.items() if delay} == set(ENCODERS)
    assert {delays[name] for name in ENCODERS} == {300}


def test_batches_of_a_whole_repository_with_its_classifier(repository: Path, labels: Path) -> None:
    build_it = ["classifier", "build", str(repository), "--name", "shapes", "--labels", str(labels)]
    assert main(build_it) == 0
    before = parsed(repository)
    configs = configure(repository, "--max-image-batch", "12", "--max-text-batch", "24", "--runtime", "onnxruntime")
    batches = {name: config.max_batch_size for name, config in configs.items()}
    of_images = ("image_encoder", "embed_image", "classifier_head_shapes", "classify_shapes")
    of_texts = ("text_encoder", "cached_text_encoder", "embed_text")
    none = ("preprocess", "tokenizer", "similarity", "split_text", "clip")
    assert batches == {**dict.fromkeys(of_images, 12), **dict.fromkeys(of_texts, 24), **dict.fromkeys(none, 0)}
    carried = configs["classify_shapes"].parameters["serving_spec"].string_value
    assert carried == configs["embed_image"].parameters["serving_spec"].string_value
    head, was = configs["classifier_head_shapes"], before["classifier_head_shapes"]
    was.max_batch_size = 12
    assert head == was


def test_the_cache_of_texts(repository: Path) -> None:
    assert not configure(repository, "--no-text-cache")["cached_text_encoder"].response_cache.enable
    assert configure(repository, "--text-cache")["cached_text_encoder"].response_cache.enable


def test_pinned_memory(repository: Path) -> None:
    optimization = configure(repository, "--runtime", "onnxruntime", "--no-pinned-memory")["text_encoder"].optimization
    assert (optimization.input_pinned_memory.enable, optimization.output_pinned_memory.enable) == (False, False)


def test_engines_serve_and_step_back(repository: Path, capsys) -> None:
    build(EngineRequest(repository), FakeToolkit())
    configs = configure(repository, "--runtime", "tensorrt", "--graph-batches", "8,1", "--encoder-instances", "2")
    assert configs["image_encoder"].platform == "tensorrt_plan"
    assert [graph.batch_size for graph in configs["image_encoder"].optimization.cuda.graph_spec] == [1, 8]
    assert configs["image_encoder"].instance_group[0].count == 2
    assert not configure(repository, "--graph-batches", "none")["image_encoder"].optimization.cuda.graphs
    assert configure(repository, "--runtime", "onnxruntime")["image_encoder"].backend == "onnxruntime"
    assert settings_of(repository, read_manifest(repository)).graph_batches is None
    build(EngineRequest(repository), FakeToolkit())
    assert parsed(repository)["image_encoder"].backend == "onnxruntime"


def test_engines_that_are_too_small_for_the_batch(repository: Path, capsys) -> None:
    build(EngineRequest(repository, tensorrt_runtime=True), FakeToolkit())
    before = content(repository)
    assert main(["configure", str(repository), "--max-image-batch", "64"]) == 2
    assert "image_encoder is to serve batches of up to 64" in capsys.readouterr().err
    assert content(repository) == before


def test_what_is_not_named_stays_and_all_is_printed(repository: Path, capsys) -> None:
    configure(repository, "--max-image-batch", "12")
    configure(repository, "--queue-seconds", "3")
    out = capsys.readouterr().out.splitlines()[-len(Settings().to_dict()) - 1 :]
    shown = {line.split()[0]: line.split(maxsplit=1)[1] for line in out[:-1]}
    assert shown["image_batch"] == "12"
    assert shown["queue_seconds"] == "3.0  (was 20.0)"
    assert shown["text_cache"] == "yes"
    # Every model with a queue: the doors, the encoders and the splitter.
    assert "5 files written" in out[-1]


def test_nothing_to_change(repository: Path, capsys) -> None:
    before = content(repository)
    configure(repository)
    assert "no file changes" in capsys.readouterr().out
    assert content(repository) == before


def test_a_repository_of_an_earlier_version_says_it_by_its_configs(repository: Path) -> None:
    configure(repository, "--max-image-batch", "12", "--threads", "3", "--preprocess-threads", "5")
    path = repository / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["settings"]
    path.write_text(json.dumps(manifest))
    expected = Settings(image_batch=12, threads=3, preprocess_threads=5)
    assert settings_of(repository, manifest) == expected
