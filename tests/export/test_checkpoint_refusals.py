"""Checkpoints whose parts are of different models: one error that names what does not fit, whatever comes first."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import family_checkpoints
from tiny_clip import write_tiny_checkpoint
from tritonclip_export.checkpoints.load import load_checkpoint
from tritonclip_export.errors import CheckpointError
from tritonclip_export.frameworks import torch

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one checkpoint a family."""
    folder = tmp_path_factory.mktemp("checkpoints")
    write_tiny_checkpoint(folder / "open_clip")
    family_checkpoints.hf_clip(folder / "clip")
    family_checkpoints.hf_siglip(folder / "siglip")
    family_checkpoints.chinese_clip(folder / "chinese_clip")
    return folder


@pytest.fixture
def changed(checkpoints: Path, tmp_path: Path) -> Callable[..., str]:
    """A copy of a checkpoint with its weights changed, or with another's."""

    def change(kind: str, how: Callable[[Tensors], Tensors] | str) -> str:
        shutil.copytree(checkpoints / kind, tmp_path / kind)
        file = tmp_path / kind / _weights(kind)
        other = how if isinstance(how, str) else kind
        given = load_file(checkpoints / other / _weights(other))
        save_file(given if isinstance(how, str) else how(given), file)
        return str(tmp_path / kind)

    return change


def _weights(kind: str) -> str:
    return "open_clip_model.safetensors" if kind == "open_clip" else "model.safetensors"


@pytest.mark.parametrize(
    ("config", "weights", "message"),
    [
        ("clip", "siglip", "do not fit the CLIPModel of .*Hugging Face's SiglipModel"),
        ("clip", "open_clip", "do not fit the CLIPModel of .*open_clip with a plain ViT"),
        ("siglip", "clip", "do not fit siglip: .*Hugging Face's CLIPModel"),
        ("chinese_clip", "clip", r"\d+ missing \(text_model.embeddings.word_embeddings.*Hugging Face's CLIPModel"),
        ("clip", "chinese_clip", "Hugging Face's ChineseCLIPModel"),
        ("open_clip", "siglip", "do not fit open_clip: .*Hugging Face's SiglipModel"),
        ("open_clip", "clip", "do not fit open_clip: .*Hugging Face's CLIPModel"),
    ],
)
def test_weights_of_another_family(changed: Callable[..., str], config: str, weights: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(changed(config, weights))


def test_weights_of_another_architecture(checkpoints: Path) -> None:
    weights = checkpoints / "open_clip" / _weights("open_clip")
    with pytest.raises(CheckpointError, match=r"do not fit ViT-B-32: \d+ missing .*resblocks\.2\..* of another shape"):
        load_checkpoint("ViT-B-32", weights=weights, like="openai")


def test_an_adapter_is_no_checkpoint(tmp_path: Path) -> None:
    save_file({"base_model.model.visual.conv1.lora_A.weight": torch.ones(2, 2)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"1 unknown .*look like those of an adapter \(give it to --adapter\)"):
        load_checkpoint("ViT-B-32", weights=tmp_path / "a.safetensors", like="openai")


TOWERS = {"text_model.": "vision_model.", "vision_model.": "text_model."}
F8 = torch.float8_e4m3fn
Q = "vision_model.encoder.layers.0.self_attn.q_proj"


def _swapped(given: Tensors) -> Tensors:
    def swap(name: str) -> str:
        tower = next((tower for tower in TOWERS if name.startswith(tower)), None)
        return name if tower is None else TOWERS[tower] + name.removeprefix(tower)

    return {swap(name): tensor for name, tensor in given.items()}


def _larger_text_tower(given: Tensors) -> Tensors:
    wide = {name: torch.cat([value, value], -1) for name, value in given.items() if name.startswith("transformer.")}
    return {**given, **wide}


def _text_tower(given: Tensors) -> Tensors:
    return {name: tensor for name, tensor in given.items() if not name.startswith("visual.")}


def _without_every_third(given: Tensors) -> Tensors:
    return {name: tensor for index, (name, tensor) in enumerate(sorted(given.items())) if index % 3}


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("open_clip", _larger_text_tower, r"24 of another shape \(transformer.*attn\.in_proj_weight \(96, 64\), not"),
        ("clip", _swapped, r"9 missing \(.*\); 9 unknown \(.*text_model\.embeddings\.class_embedding"),
        ("open_clip", lambda given: {k: v for k, v in given.items() if "visual" in k}, r"30 missing \(positional"),
        ("open_clip", _text_tower, r"32 missing \(visual.*open_clip's text tower"),
        *((kind, _without_every_third, r"\d\d missing \(.*, …\)") for kind in ("clip", "siglip", "chinese_clip")),
        ("clip", lambda given: {k: v for k, v in given.items() if not k.startswith(Q)}, rf"2 missing \({Q}\.weight"),
        ("clip", lambda given: {**given, f"{Q}.weight": torch.ones(64, 3)}, rf"{Q}\.weight \(64, 3\), not \(64, 64\)"),
        ("clip", lambda given: {**given, "head.0": torch.ones(1)}, r"1 unknown \(head\.0\)"),
        ("open_clip", lambda given: {**given, "token_embedding.weight": torch.ones(())}, r"weight \(\), not \(49408"),
        ("open_clip", lambda given: {**given, "visual.proj": given["visual.proj"].char()}, "1 in whole numbers"),
        ("open_clip", lambda given: {**given, "ln_final.bias": given["ln_final.bias"].to(F8)}, "1 in .* 8 bits"),
        ("siglip", lambda given: {**given, "logit_scale": given["logit_scale"] / 0}, r"1 hold NaN .*\(logit_scale\)"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit(
    changed: Callable[..., str], kind: str, change: Callable[[Tensors], Tensors], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(changed(kind, change))


@pytest.mark.parametrize("kind", ["open_clip", "clip", "siglip", "chinese_clip"])
@pytest.mark.parametrize("changes", [{"patch_size": 0}, {"hidden_size": "wide"}, {"num_attention_heads": 0}])
def test_configs_of_which_nothing_can_be_built(
    kind: str, changes: dict[str, object], checkpoints: Path, tmp_path: Path
) -> None:
    """Whatever the libraries run into."""
    folder = shutil.copytree(checkpoints / kind, tmp_path / kind)
    file = folder / ("open_clip_config.json" if kind == "open_clip" else "config.json")
    config = json.loads(file.read_text())
    (config["model_cfg"]["vision_cfg"] if kind == "open_clip" else config["vision_config"]).update(changes)
    file.write_text(json.dumps(config))
    with pytest.raises(
        CheckpointError,
        match=r"neither open_clip .* nor transformers can build this model config \(.+\); correct it|two models",
    ):
        load_checkpoint(str(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": [0.5, 0.5]}, r"mean of the preprocessing is \[0\.5, 0\.5\]; allowed: three numbers"),
        ({"size": "x"}, "size of the preprocessing is 'x'; allowed: a whole number, or two"),
        ({"mode": "L"}, r"open_clip rejects this preprocessing config \(AssertionError.*'mode': 'L'"),
    ],
)
def test_preprocessing_that_is_none(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(str(write_tiny_checkpoint(tmp_path, **changes)))


def test_an_index_of_no_files_is_refused(changed: Callable[..., str]) -> None:
    folder = Path(changed("clip", "clip"))
    (folder / _weights("clip")).unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {}}))
    with pytest.raises(CheckpointError, match="lists 0 files of weights"):
        load_checkpoint(str(folder))


@pytest.mark.parametrize("tokenizer", ["nothing", "siglip/tokenizer.json"])
def test_a_tokenizer_that_is_no_directory(checkpoints: Path, tokenizer: str) -> None:
    with pytest.raises(CheckpointError, match=f"{tokenizer} is no directory"):
        load_checkpoint(str(checkpoints / "siglip"), tokenizer=checkpoints / tokenizer)


@pytest.mark.parametrize("kind", ["open_clip", "clip"])
def test_a_tokenizer_that_would_not_be_used(checkpoints: Path, kind: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"would not be used: {kind} has CLIP's own vocabulary.*leave the option"):
        load_checkpoint(str(checkpoints / kind), tokenizer=tmp_path)


def test_a_family_without_its_tokenizer(checkpoints: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no tokenizer \(none of tokenizer\.json.*--tokenizer DIR"):
        load_checkpoint(str(checkpoints / "chinese_clip"), tokenizer=tmp_path)
