"""Reading checkpoints: every source, and everything that must be refused before anything is written."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import save_file

from tiny_clip import MODEL_CFG, tiny_state_dict, write_tiny_checkpoint
from tritonclip_export.checkpoints.load import load_checkpoint
from tritonclip_export.checkpoints.model import load_strictly, new_model, weights_hash
from tritonclip_export.checkpoints.sources import from_architecture, named_architecture
from tritonclip_export.checkpoints.weights import read_weights
from tritonclip_export.errors import CheckpointError
from tritonclip_export.frameworks import open_clip, torch


def test_an_open_clip_directory_loads_what_open_clip_loads(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "tiny")
    checkpoint = load_checkpoint(str(folder), name="mine")
    theirs = open_clip.create_model(f"local-dir:{folder}").state_dict()
    ours = checkpoint.build().state_dict()
    assert checkpoint.name == "mine"
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_hugging_face_directory_gives_the_same_embeddings(tmp_path: Path) -> None:
    from tritonclip_export.checkpoints.hugging_face.clip import build_hf_clip

    hf = build_hf_clip(MODEL_CFG, tiny_state_dict())
    hf.save_pretrained(tmp_path)
    preprocessor = {
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 32, "width": 32},
        "do_center_crop": True,
        "image_mean": [0.4, 0.5, 0.6],
        "image_std": [0.2, 0.3, 0.25],
        "resample": 3,
        "rescale_factor": 1 / 255,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    checkpoint = load_checkpoint(str(tmp_path))
    pixels = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        ours = checkpoint.build().encode_image(pixels)
        theirs = hf.visual_projection(hf.vision_model(pixel_values=pixels).pooler_output)
    assert (ours - theirs).abs().max() < 1e-5
    assert checkpoint.preprocess_cfg["resize_mode"] == "shortest"
    assert checkpoint.preprocess_cfg["interpolation"] == "bicubic"


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIPModel in several files of weights, without its processor."""
    from tritonclip_export.checkpoints.hugging_face.clip import build_hf_clip

    folder = tmp_path_factory.mktemp("hf")
    build_hf_clip(MODEL_CFG, tiny_state_dict()).half().save_pretrained(folder, max_shard_size="100KB")
    return folder


def _with_processor(hugging_face: Path, folder: Path, file: str, settings: dict[str, object]) -> str:
    shutil.copytree(hugging_face, folder, dirs_exist_ok=True)
    (folder / file).write_text(json.dumps(settings))
    return str(folder)


CROP = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": {"longest_edge": 32}}, "longest_edge"),
        ({"size": [32]}, r"resizes to \[32\]"),
        ({**CROP, "rescale_factor": "1/255"}, "rescale_factor 1/255; allowed"),
        ({**CROP, "resample": [3]}, r"resample \[3\]"),
        ({**CROP, "image_mean": [0.5]}, r"mean of the preprocessing is \[0\.5\]; allowed: three numbers"),
        ({**CROP, "image_std": 0.5}, r"std of the preprocessing is 0\.5; allowed: three numbers"),
        ({**CROP, "do_normalize": False}, "switches do_normalize off"),
        ({**CROP, "do_resize": False, "do_rescale": False}, "switches do_resize, do_rescale off"),
    ],
)
def test_a_hugging_face_preprocessor_that_cannot_be_served_is_refused(
    hugging_face: Path, tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    source = _with_processor(hugging_face, tmp_path, "preprocessor_config.json", settings)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(source)


def test_a_hugging_face_directory_without_processor_says_what_is_missing(hugging_face: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no preprocessor_config\.json; save the model's CLIPProcessor"):
        load_checkpoint(str(hugging_face))


def test_the_processor_may_stand_in_one_file_and_the_weights_in_many(hugging_face: Path, tmp_path: Path) -> None:
    source = _with_processor(hugging_face, tmp_path, "processor_config.json", {"image_processor": CROP})
    assert (tmp_path / "model.safetensors.index.json").is_file()
    checkpoint = load_checkpoint(source)
    assert checkpoint.preprocess_cfg["mean"] == open_clip.OPENAI_DATASET_MEAN
    expected = {name: tensor.half() for name, tensor in tiny_state_dict().items()}
    assert set(checkpoint.state_dict) == set(expected)
    assert all(torch.equal(checkpoint.state_dict[name], expected[name]) for name in expected)


def test_a_missing_shard_is_named(hugging_face: Path, tmp_path: Path) -> None:
    source = _with_processor(hugging_face, tmp_path, "preprocessor_config.json", dict(CROP))
    lost = min(tmp_path.glob("model-*.safetensors"))
    lost.unlink()
    with pytest.raises(CheckpointError, match=lost.name):
        load_checkpoint(source)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_cfg": None}, "has no vision_cfg"),
        ({"text_cfg": {"heads_up": 1}}, "unexpected keyword argument 'heads_up'"),
        ({"from_the_future": 1}, "unexpected keyword argument 'from_the_future'"),
    ],
)
def test_a_model_config_of_another_open_clip_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    folder = write_tiny_checkpoint(tmp_path / "tiny")
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    model_cfg = {key: value for key, value in {**config["model_cfg"], **change}.items() if value is not None}
    path.write_text(json.dumps({**config, "model_cfg": model_cfg}))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(str(folder)).build()


def test_weights_without_their_preprocessing_are_not_guessed(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="--like TAG.*laion2b_s34b_b79k"):
        load_checkpoint("ViT-B-32", weights=path)


def test_like_brings_activation_and_preprocessing(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    model_cfg = named_architecture("ViT-B-32")
    tags = ("openai", "laion400m_e32", "laion2b_s34b_b79k")
    read = [from_architecture("ViT-B-32", model_cfg, path, None, tag, None, None) for tag in tags]
    assert [checkpoint.model_cfg["quick_gelu"] for checkpoint in read] == [True, True, False]
    assert read[0].preprocess_cfg["mean"] == (0.48145466, 0.4578275, 0.40821073)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("ViT-B-32", {}, "0 sources"),
        ("ViT-B-32", {"pretrained": "openai", "random_weights": 1}, "2 sources"),
        ("ViT-B-32", {"pretrained": "openai", "like": "openai"}, "leave --like openai out"),
        ("./no-such-folder", {}, "neither a directory nor an open_clip architecture"),
        ("ViT-B-33", {"random_weights": 1}, "neither a directory nor an open_clip architecture"),
        ("ViT-B32", {"random_weights": 1}, "did you mean ViT-B-32"),
        ("ViT-B-32", {"weights": Path("missing.safetensors"), "like": "nothing"}, "no tag 'nothing'"),
        ("ViT-B-32", {"weights": Path("missing.safetensors"), "like": "openai"}, "no weights at"),
    ],
)
def test_what_is_wrong_is_said(source: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(source, **options)  # type: ignore[arg-type]


def test_a_directory_takes_no_weights(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "tiny")
    with pytest.raises(CheckpointError, match="brings its own weights"):
        load_checkpoint(str(folder), random_weights=1)


def test_a_directory_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"open_clip_config\.json"):
        load_checkpoint(str(tmp_path))


def test_another_hugging_face_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="'bert'"):
        load_checkpoint(str(tmp_path))


def test_random_weights_are_those_of_the_seed() -> None:
    first, again, other = (load_checkpoint("ViT-S-32-alt", random_weights=seed) for seed in (1, 1, 2))
    assert weights_hash(first.state_dict) == weights_hash(again.state_dict)
    assert weights_hash(first.state_dict) != weights_hash(other.state_dict)


def test_missing_unknown_and_misshapen_weights_are_named() -> None:
    tensors = tiny_state_dict()
    del tensors["visual.proj"]
    tensors["extra"] = torch.zeros(1)
    tensors["ln_final.weight"] = torch.zeros(5)
    tensors["visual.ln_post.bias"] = torch.zeros(48, dtype=torch.int8)
    message = (
        r"fit tiny: 1 missing \(visual\.proj\); 1 unknown \(extra\); 1 of another shape \(ln_final\.weight \(5,\), not "
        r"\(32,\)\); 1 in whole numbers or 8 bits, as quantized weights are \(visual\.ln_post\.bias\)\. They look like "
        "those of open_clip with a plain ViT"
    )
    with pytest.raises(CheckpointError, match=message):
        load_strictly(new_model(MODEL_CFG), tensors, "tiny")


def test_nan_is_refused() -> None:
    tensors = tiny_state_dict()
    tensors["ln_final.weight"][3] = float("nan")
    with pytest.raises(CheckpointError, match=r"1 hold NaN or infinity \(ln_final\.weight\)"):
        load_strictly(new_model(MODEL_CFG), tensors, "tiny")


class _Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("code ran",))


def test_a_pickle_that_wants_to_run_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"a": _Evil()}, path)
    with pytest.raises(CheckpointError, match="would run code"):
        read_weights(path)
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_file_cut_in_half_is_refused(tmp_path: Path, suffix: str) -> None:
    whole = tmp_path / f"whole{suffix}"
    tensors = {"a": torch.arange(1000.0)}
    save_file(tensors, whole) if suffix == ".safetensors" else torch.save(tensors, whole)
    half = tmp_path / f"half{suffix}"
    half.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="again"):
        read_weights(half)


def test_training_wrappers_are_taken_off(tmp_path: Path) -> None:
    path = tmp_path / "epoch_3.pt"
    torch.save({"epoch": 3, "state_dict": {"module.a": torch.ones(2), "_orig_mod.module.b": torch.ones(2)}}, path)
    assert list(read_weights(path)) == ["a", "b"]


@pytest.mark.parametrize("content", [{1: torch.zeros(2)}, torch.zeros(2)])
def test_what_is_no_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="not a state dict of named tensors"):
        read_weights(path)


def test_an_empty_model_that_timm_builds_by_a_forward_takes_weights() -> None:
    model_cfg = named_architecture("ViTamin-S")
    model_cfg["text_cfg"].update(width=64, heads=2, layers=2)
    weights = new_model(model_cfg).state_dict()
    model = new_model(model_cfg, empty=True)
    load_strictly(model, weights, "ViTamin-S")
    assert all(tensor.device.type == "cpu" for tensor in model.state_dict().values())


def test_weights_that_the_library_never_sets_are_no_leftovers_of_memory() -> None:
    model_cfg = named_architecture("coca_ViT-B-32")
    model_cfg["vision_cfg"].update(width=64, layers=1)
    for part in ("text_cfg", "multimodal_cfg"):
        model_cfg[part].update(width=64, heads=2, layers=1)
    projection = new_model(model_cfg).state_dict()["text_decoder.text_projection"]
    assert projection.numel()
    assert not projection.any()
    assert not torch.are_deterministic_algorithms_enabled()
