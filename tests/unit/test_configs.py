"""The checked-in configurations, and how the exporter edits them."""

import itertools
import shutil
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from tritonclip_export.errors import RepositoryError
from tritonclip_export.repository.configs import read_config, read_configs, served_configs, write_configs
from tritonclip_export.settings import Settings
from tritonclip_export.spec import ImageSpec, ScoringSpec, ServingSpec, TextSpec

TEMPLATES = Path(__file__).parents[2] / "model_repository"
MODELS = sorted(path.parent.name for path in TEMPLATES.glob("*/config.pbtxt"))
# Without what only an export with DALI has.
EXPORTED = [name for name in MODELS if name != "preprocess_dali"]
SPEC = ServingSpec(
    name="demo",
    architecture="small",
    embedding_dim=48,
    image=ImageSpec(60, 64, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear", "longest", (1, 2, 3)),
    text=TextSpec(50, 49408, (20, 50), 0, 49406, 49407, "canonicalize", "argmax"),
    scoring=ScoringSpec("sigmoid", 12.5, -3.25),
    fingerprint="f" * 64,
)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name in EXPORTED:
        (tmp_path / name).mkdir()
        shutil.copy(TEMPLATES / name / "config.pbtxt", tmp_path / name)
    settings = Settings(image_batch=12, text_batch=24, preprocess_threads=5, threads=3)
    write_configs(tmp_path, served_configs(read_configs(tmp_path), SPEC, settings, engines={}))
    return tmp_path


def parameters(repository: Path, model: str) -> dict[str, str]:
    config = read_config(repository / model / "config.pbtxt")
    return {key: value.string_value for key, value in config.parameters.items()}


def test_the_repository_holds_the_contract() -> None:
    towers = {"preprocess", "image_encoder", "tokenizer", "text_encoder", "similarity", "split_text"}
    assert set(MODELS) == towers | {"cached_text_encoder", "embed_image", "embed_text", "clip", "preprocess_dali"}


@pytest.mark.parametrize("name", ["embed_image", "embed_text", "clip"])
def test_no_two_steps_of_an_ensemble_run_at_the_same_time(name: str) -> None:
    """Triton before 26.02 loses a request in which one step fails while another runs."""
    steps = read_config(TEMPLATES / name / "config.pbtxt").ensemble_scheduling.step
    for earlier, later in itertools.pairwise(steps):
        assert set(earlier.output_map.values()) & set(later.input_map.values()), later.model_name


@pytest.mark.parametrize("name", MODELS)
def test_a_checked_in_config_names_its_folder_and_has_a_version(name: str) -> None:
    assert read_config(TEMPLATES / name / "config.pbtxt").name == name
    assert any((TEMPLATES / name / "1").iterdir())


def test_every_ensemble_step_maps_tensors_that_exist() -> None:
    configs = {name: read_config(TEMPLATES / name / "config.pbtxt") for name in MODELS}
    for config in configs.values():
        for step in config.ensemble_scheduling.step:
            model = configs[step.model_name]
            needed = {tensor.name for tensor in model.input if not tensor.optional}
            assert needed <= set(step.input_map), (config.name, step.model_name)
            assert set(step.input_map) <= {tensor.name for tensor in model.input}, (config.name, step.model_name)
            assert set(step.output_map) <= {tensor.name for tensor in model.output}, (config.name, step.model_name)


def test_dims_follow_the_checkpoint(repository: Path) -> None:
    for name in EXPORTED:
        config = read_config(repository / name / "config.pbtxt")
        for tensor in (*config.input, *config.output):
            if tensor.name == "pixels":
                assert list(tensor.dims) == ([60, 64, 3] if config.max_batch_size else [-1, 60, 64, 3])
            elif tensor.name.endswith(("embedding", "features")):
                assert tensor.dims[-1] == 48, (name, tensor.name)
    warmups = read_config(repository / "image_encoder" / "config.pbtxt").model_warmup
    assert list(warmups[0].inputs["pixels"].dims) == [60, 64, 3]
    warmups = read_config(repository / "text_encoder" / "config.pbtxt").model_warmup
    assert list(warmups[0].inputs["input_ids"].dims) == [20]


def test_parameters_follow_the_checkpoint(repository: Path) -> None:
    preprocess = parameters(repository, "preprocess")
    assert (preprocess["image_height"], preprocess["image_width"]) == ("60", "64")
    assert (preprocess["resize_mode"], preprocess["interpolation"]) == ("longest", "bilinear")
    assert preprocess["fill_color"] == "1,2,3"
    tokenizer = parameters(repository, "tokenizer")
    assert (tokenizer["context_length"], tokenizer["buckets"], tokenizer["clean"]) == ("50", "20,50", "canonicalize")
    similarity = parameters(repository, "similarity")
    assert similarity == {"scoring": "sigmoid", "logit_scale": "12.5", "logit_bias": "-3.25", "max_scores": "4194304"}
    for name in ("embed_image", "embed_text", "clip"):
        assert parameters(repository, name) == {"serving_spec": SPEC.to_json(), "fingerprint": "f" * 64}


def test_limits_are_applied_and_no_more(repository: Path) -> None:
    batches = {name: read_config(repository / name / "config.pbtxt").max_batch_size for name in EXPORTED}
    images = dict.fromkeys(("image_encoder", "embed_image"), 12)
    texts = dict.fromkeys(("text_encoder", "cached_text_encoder", "embed_text"), 24)
    one_by_one = dict.fromkeys(("preprocess", "tokenizer", "similarity", "split_text", "clip"), 0)
    assert batches == {**images, **texts, **one_by_one}
    assert {name: parameters(repository, name)["max_batch"] for name in ("preprocess", "tokenizer")} == {
        "preprocess": "12",
        "tokenizer": "24",
    }
    assert parameters(repository, "preprocess")["threads"] == "5"
    assert parameters(repository, "image_encoder")["threads"] == "3"
    assert parameters(repository, "text_encoder")["vocab_size"] == "49408"
    assert parameters(repository, "text_encoder")["context_length"] == "50"
    for name in EXPORTED:
        original, edited = (read_config(root / name / "config.pbtxt") for root in (TEMPLATES, repository))
        assert edited.dynamic_batching == original.dynamic_batching
        assert edited.response_cache == original.response_cache


def test_what_an_image_may_cost_follows_the_settings(repository: Path) -> None:
    given = {"max_pixels": 1000, "max_bytes": 2000, "image_seconds": 0.75, "image_megabytes": 90}
    settings = Settings(**given, exif="ignore", decoder_processes=7)
    preprocess = served_configs(read_configs(repository), SPEC, settings, engines={})["preprocess"].parameters
    assert {name: float(preprocess[name].string_value) for name in given} == given
    assert (preprocess["exif"].string_value, preprocess["decoder_processes"].string_value) == ("ignore", "7")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_pixels": 0}, "max_pixels is 0; it must be at least 1"),
        ({"image_seconds": 0.01}, "image_seconds is 0.01; it must be from 0.05 to"),
        ({"image_megabytes": 0}, "image_megabytes is 0"),
        ({"decoder_processes": 0}, "decoder_processes is 0"),
        ({"exif": "maybe"}, "exif is 'maybe'; allowed: transpose, ignore"),
    ],
)
def test_limits_that_cannot_be_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(RepositoryError, match=message):
        Settings(**change)


def test_a_max_batch_size_of_zero_is_written_out(tmp_path: Path) -> None:
    path = tmp_path / "similarity" / "config.pbtxt"
    write_configs(tmp_path, {"similarity": ModelConfig(name="similarity", backend="python")})
    assert "max_batch_size: 0" in path.read_text()
    assert text_format.Parse(path.read_text(), ModelConfig()).name == "similarity"


@pytest.mark.parametrize("content", [None, "name: [", "unknown_field: 1"])
def test_a_broken_config_is_one_clear_error(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "config.pbtxt"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RepositoryError, match=r"config\.pbtxt is not a valid config\.pbtxt"):
        read_config(path)


@pytest.mark.parametrize("name", ["image_batch", "text_batch", "preprocess_threads"])
def test_a_limit_of_zero_is_refused(name: str) -> None:
    with pytest.raises(RepositoryError, match=f"{name} is 0"):
        Settings(**{name: 0})


def test_a_negative_number_of_threads_is_refused() -> None:
    with pytest.raises(RepositoryError, match="threads is -1; it must be at least 0"):
        Settings(threads=-1)


def test_what_a_request_may_cost_is_a_setting() -> None:
    settings = Settings(max_text_bytes=1000, max_split_rows=3, max_split_bytes=5000, max_scores=99)
    made = served_configs(read_configs(TEMPLATES), SPEC, settings, engines={})
    found = {
        name: {key: value.string_value for key, value in config.parameters.items()} for name, config in made.items()
    }
    assert found["tokenizer"]["max_bytes"] == found["split_text"]["max_bytes"] == "1000"
    assert (found["split_text"]["max_batch"], found["split_text"]["max_request_bytes"]) == ("3", "5000")
    assert found["similarity"]["max_scores"] == "99"
    # Of an image, which is another matter.
    original = read_config(TEMPLATES / "preprocess" / "config.pbtxt")
    assert found["preprocess"]["max_bytes"] == original.parameters["max_bytes"].string_value


@pytest.mark.parametrize("name", ["max_text_bytes", "max_split_rows", "max_split_bytes", "max_scores"])
def test_limits_are_at_least_one(name: str) -> None:
    with pytest.raises(RepositoryError, match=f"{name} is 0; it must be at least 1"):
        Settings(**{name: 0})
