"""Adapters of every kind through command and server, against each method's own forward, never merged, in PyTorch."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graph_adapter_models
import lora_layers as layers
from graph_adapter_models import GOLDEN, VISION_WIDTH, clip_adapter_file, noise
from graph_adapter_references import (
    add_bottlenecks,
    add_prompts,
    clip_adapter,
    hf_clip,
    hf_image_features,
    hf_text_features,
)
from lora_files import ALL_OF_TEXT, kohya_names, peft_train, saved, text_lora
from lora_models import disturb, peft_wrap, quiet
from tiny_clip import write_tiny_checkpoint
from tritonclip_client import ClipClient
from tritonclip_client.main import main
from tritonclip_export.checkpoints.load import load_checkpoint
from tritonclip_export.frameworks import torch
from tritonclip_export.parity.probes import synthetic_images, transform_images
from tritonclip_serve import TritonServer

LEAST_COSINE, MOST_ABS, VISIBLE = 0.99999, 1e-4, 1e-2
SIDE = 64
MODEL_CFG: dict[str, Any] = {
    **graph_adapter_models.MODEL_CFG,
    "vision_cfg": {**graph_adapter_models.MODEL_CFG["vision_cfg"], "image_size": SIDE, "patch_size": 16},
    "text_cfg": {**graph_adapter_models.MODEL_CFG["text_cfg"], "context_length": 77, "vocab_size": 49408},
}
TEXTS = [
    "a photo of a cat",
    "",
    "Two DOGS, running_along — the beach!",
    "杰尼龟 和 妙蛙种子",
    "seven words are in this caption, almost",
]
Features = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Adapted:
    """What is given to the command, and the features of the method itself, not normalized, [N, D]."""

    options: list[str]
    image: Features
    text: Features


def of_hf(model: Any, *options: object) -> Adapted:
    return Adapted(
        [str(option) for option in options],
        lambda pixels: hf_image_features(model, pixels),
        lambda ids: hf_text_features(model, ids),
    )


def kohya(folder: Path) -> Adapted:
    model = hf_clip(MODEL_CFG)
    tensors = peft_train(model, text_lora(ALL_OF_TEXT))
    return of_hf(model, "--adapter", saved(folder / "kohya.safetensors", kohya_names(tensors)))


def loralib(folder: Path) -> Adapted:
    model = graph_adapter_models.build(MODEL_CFG, graph_adapter_models.state_dict(MODEL_CFG))
    torch.manual_seed(11)
    layers.adapt_mlp(model)
    layers.adapt_attention(model, "qkv")
    torch.save(layers.lora_only(model), folder / "lora.pt")
    options = ["--adapter", str(folder / "lora.pt"), "--lora-alpha", str(layers.ALPHA)]
    return Adapted(options, model.encode_image, lambda ids: model.encode_text(ids.long()))


def ties(folder: Path) -> Adapted:
    """PEFT's own deltas, elected by PEFT's own function."""
    from peft.utils.merge_utils import ties as elect

    trained = [_trained_by_peft(folder / name, seed, *targets) for seed, (name, targets) in enumerate(TIES.items())]
    model = hf_clip(MODEL_CFG)
    for name, parameter in model.named_parameters():
        deltas = [own.get(name, torch.zeros_like(parameter)) for own in trained]
        parameter.data += elect(deltas, torch.tensor(TIES_WEIGHTS), 0.5)
    adapters = [f"{folder / name}={weight}" for name, weight in zip(TIES, TIES_WEIGHTS, strict=True)]
    options = [word for adapter in adapters for word in ("--adapter", adapter)]
    return of_hf(model, *options, "--merge-method", "ties", "--merge-density", 0.5)


# Not on q, k or v, which are one tensor in open_clip, where values are ranked tensor by tensor.
TIES = {"one": ("out_proj", "fc1"), "two": ("fc1", "fc2", "visual_projection")}
TIES_WEIGHTS = (0.7, 1.5)


def _trained_by_peft(folder: Path, seed: int, *targets: str) -> dict[str, torch.Tensor]:
    """Save a LoRA; returns PEFT's own difference of every weight that it adapts."""
    from peft.tuners.lora import LoraLayer

    model = peft_wrap(hf_clip(MODEL_CFG), target_modules=list(targets))
    disturb(model, seed, noise=0.1)
    with quiet():
        model.save_pretrained(str(folder))
    found = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    return {
        f"{name.removeprefix('base_model.model.')}.weight": module.get_delta_weight("default").detach()
        for name, module in found.items()
    }


def bottleneck(_: Path) -> Adapted:
    model = hf_clip(MODEL_CFG)
    add_bottlenecks(model, GOLDEN / "pfeiffer")
    return of_hf(model, "--adapter", GOLDEN / "pfeiffer")


def vpt_deep_and_clip_adapter(folder: Path) -> Adapted:
    """One inside the image tower, one behind it."""
    first, deep = noise(1, 3, VISION_WIDTH), noise(1, 3, VISION_WIDTH, seed=1)
    torch.save({"prompt_embeddings": first, "deep_prompt_embeddings": deep}, folder / "vpt.pth")
    file = clip_adapter_file(folder)
    down, up = torch.load(file, weights_only=False)["state_dict"].values()
    model = hf_clip(MODEL_CFG)
    add_prompts(model, first[0], {1: deep[0]})
    prompted = of_hf(model, "--adapter", folder / "vpt.pth", "--adapter", file)
    return replace(prompted, image=lambda pixels: clip_adapter(prompted.image(pixels), down, up))


CHANGES = {
    kohya: {"text"},
    loralib: {"image", "text"},
    ties: {"image", "text"},
    bottleneck: {"image", "text"},
    vpt_deep_and_clip_adapter: {"image"},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "clip"
    return write_tiny_checkpoint(folder, MODEL_CFG, graph_adapter_models.state_dict(MODEL_CFG), size=SIDE)


# What is one more file format to the export is left to `make test-all`.
SLOW = (loralib, ties)


@pytest.mark.parametrize(
    "method",
    [pytest.param(method, id=method.__name__, marks=pytest.mark.slow if method in SLOW else ()) for method in CHANGES],
)
def test_the_server_answers_as_the_method_itself(
    method: Callable[[Path], Adapted], checkpoint: Path, tmp_path: Path
) -> None:
    adapted, plain = method(tmp_path), of_hf(hf_clip(MODEL_CFG))
    out = tmp_path / "repository"
    assert main(["export", str(checkpoint), str(out), *adapted.options, "--preprocess-threads", "1"]) == 0
    read = load_checkpoint(str(checkpoint))
    # As large as the tower takes them: how others are resized is for the tests of preprocessing.
    images = [image.convert("RGB").resize((SIDE, SIDE)) for image in synthetic_images()]
    inputs = {"image": transform_images(images, read.preprocess_cfg), "text": read.tokenization(TEXTS)}
    with (
        TritonServer(out, grpc_port=0, metrics_port=0, log_path=tmp_path / "server.log") as server,
        ClipClient(server.grpc_address) as client,
    ):
        embedded = client.embed_images([_png(image) for image in images])
        served = {"image": embedded, "text": client.embed_texts(TEXTS)}
    for tower, answers in served.items():
        own, base = (_normalized(getattr(model, tower), inputs[tower]) for model in (adapted, plain))
        assert (np.abs(own - base).max() > VISIBLE) == (tower in CHANGES[method]), tower
        assert (answers * own).sum(axis=1).min() >= LEAST_COSINE, tower
        assert np.abs(answers - own).max() <= MOST_ABS, tower


def _normalized(features: Features, inputs: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return torch.nn.functional.normalize(features(inputs), dim=-1).numpy()


def _png(image: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
