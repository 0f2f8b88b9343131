"""Weights in a file, with the name of their architecture, as people have them; against open_clip reading that file."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from safetensors.torch import save_file

import local_tokenizers
from apple_names import by_apple
from families import SHRUNK_FASTVIT
from family_checkpoints import hf_text_config, perturbed, shrunk_config
from tritonclip_export.checkpoints.load import load_checkpoint
from tritonclip_export.checkpoints.model import new_model, quiet_open_clip
from tritonclip_export.frameworks import open_clip, torch
from tritonclip_export.pipeline import ExportRequest, export

Tensors = dict[str, torch.Tensor]

TEXTS = ["a photo of a cat", "", "two dogs play in the snow, by the sea"]
LEAST_COSINE = 0.99999
MOST_ABS = 1e-4


def plain(path: Path, weights: Tensors) -> None:
    torch.save(weights, path)


def legacy(path: Path, weights: Tensors) -> None:
    """Not a zip archive, as torch wrote before 1.6."""
    torch.save(weights, path, _use_new_zipfile_serialization=False)


def training_checkpoint(path: Path, weights: Tensors) -> None:
    """As open_clip's training writes it, from data parallel, after a step of the optimizer."""
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    scaler = {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 7}
    state_dict = {f"module.{name}": tensor for name, tensor in weights.items()}
    states = {"optimizer": optimizer.state_dict(), "scaler": scaler}
    torch.save({"epoch": 3, "name": "run", "state_dict": state_dict, **states}, path)


def as_openai(weights: Tensors) -> Tensors:
    """OpenAI's own model: 16 bits, with three numbers beside the weights."""
    numbers = {"input_resolution": 224, "context_length": 77, "vocab_size": 49408}
    halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    return {**halves, **{name: torch.tensor(number) for name, number in numbers.items()}}


def openai(path: Path, weights: Tensors) -> None:
    """Its state dict."""
    torch.save(as_openai(weights), path)


class Place(torch.nn.Module):
    """A module that is nothing but its weights."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def script(path: Path, weights: Tensors) -> None:
    """OpenAI's TorchScript archive: a program, and in its modules the weights of `openai`."""
    root = Place()
    for name, tensor in as_openai(weights).items():
        place = root
        *parents, leaf = name.split(".")
        for parent in parents:
            place = place._modules.setdefault(parent, Place())
        place.register_buffer(leaf, tensor)
    with warnings.catch_warnings():
        # torch deprecates making what people still have.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(root, torch.zeros(1)).save(str(path))


def before_custom_text(path: Path, weights: Tensors) -> None:
    """Text weights without their `text.`, scale and bias as vectors, as older versions of open_clip saved them."""
    old = {name.removeprefix("text."): tensor for name, tensor in weights.items()}
    torch.save({**old, "logit_scale": old["logit_scale"].reshape(1)}, path)


def of_old_transformers(path: Path, weights: Tensors) -> None:
    """With the buffer of positions that transformers saved before 4.31."""
    torch.save({**weights, "text.transformer.embeddings.position_ids": torch.arange(130)[None]}, path)


def apple(path: Path, weights: Tensors) -> None:
    """As Apple published MobileCLIP."""
    torch.save(by_apple(weights), path)


def safetensors_of(dtype: torch.dtype) -> Callable[[Path, Tensors], None]:
    return lambda path, weights: save_file({name: tensor.to(dtype) for name, tensor in weights.items()}, path)


@dataclass(frozen=True)
class Case:
    """An architecture, made small, and a file of weights for it.

    Attributes:
        like: the tag that was trained as these weights were.
        change: settings of `shrunk_config`.
        tokenizer: one of `local_tokenizers.KINDS`; None: CLIP's.
        hf_text: the model type of a text tower of Hugging Face.
        read: open_clip reading the file; None: as its `create_model` does.
    """

    architecture: str
    like: str
    file: str
    write: Callable[[Path, Tensors], None]
    change: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: str | None = None
    hf_text: str | None = None
    read: Callable[[Path], Any] | None = None


def by_openai(path: Path) -> Any:
    """open_clip's own reader of OpenAI's files; it derives the heads from the width, 64 values each."""
    with warnings.catch_warnings():
        # torch deprecates what open_clip tries first.
        warnings.simplefilter("ignore")
        return open_clip.load_openai_model(str(path), precision="fp32", device="cpu")


EVA = {"tower": {"embed_dim": 128, "depth": 2, "num_heads": 2}}
SIGLIP = {"tower": {"embed_dim": 64, "depth": 2, "num_heads": 2}}
OPENAI = {"vision": {"head_width": 64}, "heads": 1}
RESNET = {"vision": {"layers": [1, 1, 1, 1], "width": 16}}
CASES = {
    "plain": Case("ViT-B-32", "laion2b_s34b_b79k", "weights.pt", plain),
    "legacy": Case("RN50-quickgelu", "openai", "weights.pt", legacy, RESNET),
    "training": Case("ViT-B-32-quickgelu", "metaclip_400m", "epoch_3.pt", training_checkpoint),
    "openai": Case("ViT-B-32", "openai", "weights.pth", openai, OPENAI, read=by_openai),
    "script": Case("ViT-B-32", "openai", "ViT-B-32.pt", script, OPENAI, read=by_openai),
    "float16": Case("EVA02-B-16", "merged2b_s8b_b131k", "w.safetensors", safetensors_of(torch.float16), EVA),
    "bfloat16": Case("ViT-B-16-SigLIP", "webli", "w.safetensors", safetensors_of(torch.bfloat16), SIGLIP, "t5"),
    "Apple's S1": Case("MobileCLIP-S1", "datacompdr", "mobileclip_s1.pt", apple, {"tower": SHRUNK_FASTVIT}),
    "Apple's B": Case("MobileCLIP-B", "datacompdr", "mobileclip_b.pt", apple, {"tower": {"depth": 2}}),
    "old names": Case("EVA02-B-16", "merged2b_s8b_b131k", "weights.pt", before_custom_text, EVA),
    "old buffers": Case(
        "roberta-ViT-B-32", "laion2b_s12b_b32k", "weights.bin", of_old_transformers, {}, "roberta", "roberta"
    ),
}


@pytest.fixture
def case(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    """The case whose name is the parameter; open_clip knows its architecture in small, and its file is written."""
    case = CASES[request.param]
    change = dict(case.change)
    vision = change.pop("vision", {})
    if case.tokenizer:
        size = local_tokenizers.KINDS[case.tokenizer](tmp_path / "tokenizer")
        change.update({} if case.hf_text else {"vocab_size": size})
    model_cfg = shrunk_config(case.architecture, **change)
    model_cfg["vision_cfg"].update(vision)
    if case.tokenizer:
        model_cfg["text_cfg"]["hf_tokenizer_name"] = str(tmp_path / "tokenizer")
    if case.hf_text:
        config = json.dumps(hf_text_config(case.hf_text, size))
        (tmp_path / "tokenizer" / "config.json").write_text(config)
        model_cfg["text_cfg"]["hf_model_name"] = str(tmp_path / "tokenizer")
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, case.architecture, model_cfg)
    torch.manual_seed(0)
    case.write(tmp_path / case.file, perturbed(new_model(model_cfg)))
    return case


def read_by_open_clip(case: Case, path: Path) -> Any:
    if case.read:
        return case.read(path).eval()
    with quiet_open_clip():
        return open_clip.create_model(case.architecture, pretrained=str(path), pretrained_hf=False).eval()


def embeddings(model: Any, pixels: np.ndarray, ids: torch.Tensor, case: Case) -> list[np.ndarray]:
    trained = open_clip.get_pretrained_cfg(case.architecture, case.like)
    mean, std = (torch.tensor(trained[name]).reshape(1, 3, 1, 1) for name in ("mean", "std"))
    values = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.no_grad():
        features = model.encode_image(values), model.encode_text(ids)
    return [torch.nn.functional.normalize(feature, dim=-1).numpy() for feature in features]


def served(repository: Path, pixels: np.ndarray, ids: torch.Tensor) -> list[np.ndarray]:
    inputs = {"image_encoder": ("pixels", pixels), "text_encoder": ("input_ids", ids.int().numpy())}
    return [
        onnxruntime.InferenceSession(repository / tower / "1" / "model.onnx").run(None, {name: value})[0]
        for tower, (name, value) in inputs.items()
    ]


def close(ours: list[np.ndarray], theirs: list[np.ndarray]) -> bool:
    pairs = list(zip(ours, theirs, strict=True))
    least = min((a * b).sum(axis=1).min() for a, b in pairs)
    return bool(least >= LEAST_COSINE and max(np.abs(a - b).max() for a, b in pairs) <= MOST_ABS)


def inputs_of(case: Case) -> tuple[np.ndarray, torch.Tensor]:
    """Noise as images, uint8 [3, H, W, 3], and open_clip's ids of TEXTS."""
    size = open_clip.get_model_config(case.architecture)["vision_cfg"]["image_size"]
    pixels = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), np.uint8)
    return pixels, open_clip.get_tokenizer(case.architecture)(TEXTS)


@pytest.mark.parametrize("case", ["plain", "training", "script", "float16", "bfloat16"], indirect=True)
def test_a_file_is_served_with_the_embeddings_of_open_clip(case: Case, tmp_path: Path) -> None:
    out = tmp_path / "repository"
    tokenizer = tmp_path / "tokenizer" if case.tokenizer else None
    request = ExportRequest(case.architecture, out, weights=tmp_path / case.file, like=case.like, tokenizer=tokenizer)
    comparisons = export(request)["parity"]["comparisons"]
    assert min(comparison["cosine_min"] for comparison in comparisons) >= LEAST_COSINE
    pixels, ids = inputs_of(case)
    assert close(served(out, pixels, ids), embeddings(read_by_open_clip(case, tmp_path / case.file), pixels, ids, case))


@pytest.mark.parametrize(
    "case", ["openai", "legacy", "Apple's S1", "Apple's B", "old names", "old buffers"], indirect=True
)
def test_a_file_is_read_as_open_clip_reads_it(case: Case, tmp_path: Path) -> None:
    path = tmp_path / case.file
    tokenizer = tmp_path / "tokenizer" if case.tokenizer else None
    checkpoint = load_checkpoint(case.architecture, weights=path, like=case.like, tokenizer=tokenizer)
    inputs = inputs_of(case)
    ours = embeddings(checkpoint.build(), *inputs, case)
    assert close(ours, embeddings(read_by_open_clip(case, path), *inputs, case))


@pytest.mark.parametrize("case", ["openai"], indirect=True)
def test_another_activation_is_another_model(case: Case, tmp_path: Path) -> None:
    """The architecture alone would build GELU: `--like` decides, and these tests see it."""
    inputs = inputs_of(case)
    theirs = embeddings(read_by_open_clip(case, tmp_path / case.file), *inputs, case)
    read = load_checkpoint(case.architecture, weights=tmp_path / case.file, like="laion2b_s34b_b79k").build()
    assert not close(embeddings(read, *inputs, case), theirs)
