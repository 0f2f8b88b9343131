"""`tritonclip export` on bad input as a user sees it: exit status 2, one line that says what to do, nothing written."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import family_checkpoints
from lora_models import peft_wrap, quiet
from tiny_clip import MODEL_CFG, tiny_state_dict, write_tiny_checkpoint
from tritonclip_client.main import main
from tritonclip_export.checkpoints.model import new_model
from tritonclip_export.frameworks import torch

WEIGHTS, HF_WEIGHTS = "open_clip_model.safetensors", "model.safetensors"
Words = list[object]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sound checkpoints and a sound adapter."""
    folder = tmp_path_factory.mktemp("good")
    write_tiny_checkpoint(folder / "clip")
    family_checkpoints.hf_siglip(folder / "siglip")
    family_checkpoints.chinese_clip(folder / "chinese_clip")
    with quiet():
        peft_wrap(new_model(MODEL_CFG), target_modules=["attn", "c_fc"]).save_pretrained(str(folder / "lora"))
    return folder


class RunsCode:
    """Creates a file when it is read by an ordinary unpickler."""

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("code-ran"),))


def edit(file: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change the tensors or the settings in a file."""
    if file.suffix == ".json":
        file.write_text(json.dumps(change(json.loads(file.read_text()))))
    else:
        save_file({name: tensor.contiguous() for name, tensor in change(load_file(file)).items()}, file)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def wrong_family(folder: Path) -> Words:
    shutil.copy(folder / "siglip" / HF_WEIGHTS, folder / "clip" / WEIGHTS)
    return [folder / "clip"]


def mixed_up_towers(folder: Path) -> Words:
    def twice_as_wide(given: dict[str, Any]) -> dict[str, Any]:
        return {k: torch.cat([v, v], -1) if k.startswith("transformer.") else v for k, v in given.items()}

    edit(folder / "clip" / WEIGHTS, twice_as_wide)
    return [folder / "clip"]


def towers_of_two_lengths(folder: Path) -> Words:
    vision = {"image_size": 160, "timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none"}
    model_cfg = {**MODEL_CFG, "vision_cfg": vision}
    write_tiny_checkpoint(folder / "clip", model_cfg, tiny_state_dict(model_cfg), size=160)
    return [folder / "clip"]


def missing_and_extra_keys(folder: Path) -> Words:
    edit(folder / "clip" / WEIGHTS, lambda given: {f"x.{name}": tensor for name, tensor in given.items()})
    return [folder / "clip"]


def shape_mismatch(folder: Path) -> Words:
    edit(folder / "clip" / WEIGHTS, lambda given: {**given, "visual.proj": torch.ones(3, 4)})
    return [folder / "clip"]


def nan_in_weights(folder: Path) -> Words:
    edit(folder / "clip" / WEIGHTS, lambda given: {**given, "visual.proj": given["visual.proj"] / 0})
    return [folder / "clip", "--adapter", folder / "lora"]


def nan_in_adapter(folder: Path) -> Words:
    edit(folder / "lora" / "adapter_model.safetensors", lambda given: {k: v.log() for k, v in given.items()})
    return [folder / "clip", "--adapter", folder / "lora"]


def empty_adapter(folder: Path) -> Words:
    save_file({}, folder / "lora" / "adapter_model.safetensors")
    return [folder / "clip", "--adapter", folder / "lora"]


def adapter_of_another_model(folder: Path) -> Words:
    return [folder / "siglip", "--adapter", folder / "lora"]


def pickle_of_weights(folder: Path) -> Words:
    (folder / "clip" / WEIGHTS).unlink()
    torch.save({"a": RunsCode()}, folder / "clip" / "open_clip_pytorch_model.bin")
    return [folder / "clip"]


def pickle_of_lora(folder: Path) -> Words:
    torch.save({"a": RunsCode()}, folder / "lora.pt")
    return [folder / "clip", "--adapter", folder / "lora.pt"]


def pickle_of_training(folder: Path) -> Words:
    torch.save({"state_dict": {"fc.0.weight": torch.ones(6, 24)}, "epoch": RunsCode()}, folder / "model.pth.tar")
    return [folder / "clip", "--adapter", folder / "model.pth.tar"]


def truncated_weights(folder: Path) -> Words:
    cut(folder / "clip" / WEIGHTS)
    return [folder / "clip"]


def truncated_adapter(folder: Path) -> Words:
    cut(folder / "lora" / "adapter_model.safetensors")
    return [folder / "clip", "--adapter", folder / "lora"]


def missing_shard(folder: Path) -> Words:
    (folder / "siglip" / HF_WEIGHTS).unlink()
    index = {"weight_map": {"logit_scale": "model-00002-of-00002.safetensors"}}
    (folder / "siglip" / "model.safetensors.index.json").write_text(json.dumps(index))
    return [folder / "siglip"]


def index(folder: Path, content: str) -> Words:
    (folder / "siglip" / HF_WEIGHTS).unlink()
    (folder / "siglip" / "model.safetensors.index.json").write_text(content)
    return [folder / "siglip"]


def index_without_a_map(folder: Path) -> Words:
    return index(folder, '{"a": 5}')


def index_of_numbers(folder: Path) -> Words:
    return index(folder, '{"weight_map": {"a": 5}}')


def index_of_many_layers(folder: Path) -> Words:
    return index(folder, "[" * 100_000)


def settings_of_many_layers(folder: Path) -> Words:
    (folder / "siglip" / "config.json").write_text("[" * 100_000)
    return [folder / "siglip"]


def preprocessing_of_many_layers(folder: Path) -> Words:
    (folder / "siglip" / "preprocessor_config.json").write_text("[" * 100_000)
    return [folder / "siglip"]


def adapter_of_many_layers(folder: Path) -> Words:
    (folder / "lora" / "adapter_config.json").write_text("[" * 100_000)
    return [folder / "clip", "--adapter", folder / "lora"]


def other_semantics_of_peft(folder: Path) -> Words:
    edit(folder / "lora" / "adapter_config.json", lambda given: {**given, "peft_version": "9.0.0"})
    return [folder / "clip", "--adapter", folder / "lora"]


def tokenizer_of_another_size(folder: Path) -> Words:
    return [folder / "siglip", "--tokenizer", folder / "chinese_clip"]


def tokenizer_of_other_padding(folder: Path) -> Words:
    edit(folder / "chinese_clip" / "tokenizer_config.json", lambda given: {**given, "pad_token": "[MASK]"})
    return [folder / "chinese_clip"]


def option_that_the_adapter_says(folder: Path) -> Words:
    return [folder / "clip", "--adapter", folder / "lora", "--lora-alpha", 99]


def tag_of_none(folder: Path) -> Words:
    return ["Long-CLIP-B-16", "--random-weights", 0, "--like", "openai"]


CASES = {
    wrong_family: r"the weights do not fit clip: .* look like those of Hugging Face's SiglipModel; give the config",
    mixed_up_towers: r"24 of another shape \(transformer\.resblocks\.0\..* \(64,\), not \(32,\), .*, …\)",
    towers_of_two_lengths: r"the image tower gives 96 values and the text tower 24; give a checkpoint whose towers",
    missing_and_extra_keys: r"\d\d missing \(positional_embedding, .*, …\); \d\d unknown \(x\..*, …\)",
    shape_mismatch: r"1 of another shape \(visual\.proj \(3, 4\), not \(48, 24\)\)",
    nan_in_weights: r"1 hold NaN or infinity \(visual\.proj\); export a checkpoint that trained well",
    nan_in_adapter: r"tensors of .*lora/adapter_model.* hold NaN or infinity .* Use an earlier save of the adapter",
    empty_adapter: r"lora/adapter_model\.safetensors holds no tensors; save or copy it again",
    adapter_of_another_model: r"lora.* another model .*; give the checkpoint that it was trained on",
    pickle_of_weights: r"open_clip_pytorch_model\.bin .* would run code when read; .* as safetensors",
    pickle_of_lora: r"lora\.pt .* would run code when read; .* as safetensors",
    pickle_of_training: r"model\.pth\.tar .* would run code when read \(it names pathlib.*\); .* as safetensors",
    truncated_weights: r"open_clip_model\.safetensors is not a whole safetensors file .* copy or download it again",
    truncated_adapter: r"lora/adapter_model\.safetensors is not a whole safetensors file .* copy or download it again",
    missing_shard: r"index\.json lists 1 files of weights, 1 of them missing \(model-00002-of-00002\.safetensors\)",
    index_without_a_map: r"index\.json is no index of weights \(KeyError\('weight_map'\)\); copy or download it again",
    index_of_numbers: r"index\.json is no index of weights \(TypeError\(.*\)\); copy or download it again",
    index_of_many_layers: r"index\.json is no index of weights \(RecursionError\(.*\)\); copy or download it again",
    settings_of_many_layers: r"config\.json cannot be read as JSON \(maximum recursion depth exceeded",
    preprocessing_of_many_layers: r"preprocessor_config\.json cannot be read as JSON \(maximum recursion depth",
    adapter_of_many_layers: r"adapter_config\.json is not readable JSON \(maximum recursion depth exceeded",
    other_semantics_of_peft: r"lora was trained with PEFT 9\.0\.0, .* set peft_version in .*adapter_config\.json",
    tokenizer_of_another_size: r"chinese_clip makes ids up to \d+, the text tower knows \d+ tokens; give the tokenizer",
    tokenizer_of_other_padding: r"the text tower masks the id 0, the tokenizer pads with 4; give the tokenizer",
    option_that_the_adapter_says: r"alpha 99\.0 was given, but .*lora is PEFT's directory, .*; leave the option out",
    tag_of_none: r"Long-CLIP-B-16 has no tags, 'openai' was given; leave the option out",
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_bad_input_is_one_clear_error_and_writes_nothing(
    case: Callable[[Path], Words],
    good: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given, place = shutil.copytree(good, tmp_path / "given"), tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    source, *options = map(str, case(given))
    assert main(["export", source, "made/for/it/out", *options]) == 2
    printed = capsys.readouterr().err.splitlines()
    (error,) = [line for line in printed if line.startswith("error: ")]
    assert printed[-1] == error
    assert re.search(CASES[case], error), error
    assert list(place.rglob("*")) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--lora-alpha", "4", "--lora-rank", "2"], "--lora-alpha 4.0 and --lora-rank 2 without an adapter; add"),
        (["--merge-method", "ties", "--merge-density", "0.5"], "--merge-method ties and --merge-density 0.5 without"),
        (["--adapter-format", "kohya"], "--adapter-format kohya without an adapter; add --adapter PATH, or leave"),
        (["--merge-seed", "3"], "--merge-seed 3 without an adapter"),
        (["--adapter", "mine", "--merge-seed", "0"], "--merge-seed 0 given, and --merge-method sum draws nothing"),
    ],
)
def test_options_of_adapters_need_one(
    options: list[str], words: str, good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(good / "clip"), str(tmp_path / "out"), *options]) == 2
    assert words in capsys.readouterr().err
