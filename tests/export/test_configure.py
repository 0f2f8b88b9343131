"""`tritonclip configure`: configs as Triton's protobuf reads them, against the ONNX files, and nothing half done."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from fake_tensorrt import FakeToolkit
from tritonclip_client.main import main
from tritonclip_client.spec import ServingSpec as ClientSpec
from tritonclip_export.agreement import require_agreement
from tritonclip_export.configs import ENSEMBLES
from tritonclip_export.configure import settings_of
from tritonclip_export.engine.build import EngineRequest, build
from tritonclip_export.errors import RepositoryError
from tritonclip_export.manifest import read_manifest, verify
from tritonclip_export.settings import MAX_QUEUE_SIZE, Settings

ENCODERS = ("image_encoder", "text_encoder")
WAITING = ("preprocess", "tokenizer", *ENCODERS)
LABELS = ["a red circle", "a blue square"]


def parsed(repository: Path) -> dict[str, ModelConfig]:
    """By Triton's protobuf, and not by what wrote them."""
    return {
        path.parent.name: text_format.Parse(path.read_text(), ModelConfig())
        for path in sorted(repository.glob("*/config.pbtxt"))
    }


def configure(repository: Path, *options: str) -> dict[str, ModelConfig]:
    assert main(["configure", str(repository), *options]) == 0
    verify(repository)
    return parsed(repository)


def content(repository: Path) -> dict[str, bytes]:
    return {str(path.relative_to(repository)): path.read_bytes() for path in repository.rglob("*") if path.is_file()}


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
    pictures, texts = (configs[model].model_warmup for model in ENCODERS)
    assert [(one.batch_size, one.inputs["pixels"].input_data_file) for one in pictures] == [
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
        return [configs[name].dynamic_batching.default_queue_policy.max_queue_size for name in WAITING]

    assert sizes(parsed(repository)) == [0] * 4
    assert sizes(configure(repository, "--release", "26.01")) == [0] * 4
    assert sizes(configure(repository, "--release", "26.02")) == [MAX_QUEUE_SIZE] * 4
    assert sizes(configure(repository, "--max-queue-size", "64")) == [64] * 4
    assert sizes(configure(repository, "--max-queue-size", "0")) == [0] * 4


def test_waiting_is_bounded_by_time(repository: Path) -> None:
    configs = configure(repository, "--queue-seconds", "1.5")
    policies = [configs[name].dynamic_batching.default_queue_policy for name in WAITING]
    assert [policy.default_timeout_microseconds for policy in policies] == [1_500_000] * 4
    assert {policy.timeout_action for policy in policies} == {0}  # REJECT


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
    of_pictures = ("preprocess", "image_encoder", "embed_image", "classifier_head_shapes", "classify_shapes")
    of_texts = ("tokenizer", "text_encoder", "cached_text_encoder", "embed_text")
    none = ("similarity", "text_gate", "split_text", "clip")
    assert batches == {**dict.fromkeys(of_pictures, 12), **dict.fromkeys(of_texts, 24), **dict.fromkeys(none, 0)}
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
    assert "4 configs written" in out[-1]


def test_nothing_to_change(repository: Path, capsys) -> None:
    before = content(repository)
    configure(repository)
    assert "no config changes" in capsys.readouterr().out
    assert content(repository) == before


def test_a_repository_of_an_earlier_version_says_it_by_its_configs(repository: Path) -> None:
    configure(repository, "--max-image-batch", "12", "--threads", "3", "--preprocess-instances", "5")
    path = repository / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["settings"]
    path.write_text(json.dumps(manifest))
    expected = Settings(image_batch=12, threads=3, preprocess_instances=5)
    assert settings_of(repository, manifest) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-queue-size", "8"], "max_queue_size is 8 for release 24.10; before 26.02 .*never answers"),
        (["--encoder-instances", "2"], "encoder_instances is 2 for the runtime onnxruntime-python"),
        (["--queue-delay-us", "5"], "queue_delay_us is 5 for the runtime onnxruntime-python"),
        (["--graph-batches", "1,2"], "graph_batches is given for the runtime onnxruntime-python; only tensorrt"),
        (["--graph-batches", "one"], "--graph-batches one given; write sizes like 1,8,32, or none"),
        (["--runtime", "tensorrt"], "the runtime tensorrt was asked for, and image_encoder has no engine; build it"),
        (["--release", "2.51"], "release is '2.51'; write the release of tritonserver as YY.MM, like 26.04"),
        (["--max-image-batch", "0"], "image_batch is 0; it must be at least 1"),
        (["--threads", "-1"], "threads is -1; it must be at least 0"),
        (["--queue-seconds", "0"], "queue_seconds is 0; it must be more than 0"),
        (["--queue-seconds", "nan"], "queue_seconds is nan; it must be more than 0"),
    ],
)
def test_what_cannot_be_had_is_refused_and_changes_nothing(
    options: list[str], message: str, repository: Path, capsys
) -> None:
    before = content(repository)
    assert main(["configure", str(repository), *options]) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(error)
    assert content(repository) == before


def test_a_machine_that_serves_has_all_that_it_needs(repository: Path) -> None:
    code = "import sys; sys.modules.update(dict.fromkeys(['torch', 'onnx', 'open_clip', 'onnxruntime']))"
    code += (
        f"; from tritonclip_client.main import main; sys.exit(main(['configure', {str(repository)!r}, *sys.argv[1:]]))"
    )
    line = [sys.executable, "-c", code, "--preprocess", "dali", "--runtime", "onnxruntime"]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert parsed(repository)["image_encoder"].backend == "onnxruntime"


def test_a_repository_that_was_changed_is_left_alone(repository: Path, capsys) -> None:
    path = repository / "preprocess" / "config.pbtxt"
    path.write_text(path.read_text() + "\n")
    assert main(["configure", str(repository), "--max-image-batch", "4"]) == 2
    assert "preprocess/config.pbtxt was changed" in capsys.readouterr().err


def test_no_repository(tmp_path: Path, capsys) -> None:
    assert main(["configure", str(tmp_path / "nothing"), "--threads", "1"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_settings_of_a_later_version() -> None:
    with pytest.raises(RepositoryError, match="settings have color, unknown to this version"):
        Settings.from_dict({"color": "red"})
