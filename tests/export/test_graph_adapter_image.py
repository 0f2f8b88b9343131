"""CLIP-Adapter, VPT and MaPLe's image prompts against their papers' formulas on Hugging Face's CLIP."""

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from graph_adapter_models import (
    GOLDEN,
    MODEL_CFG,
    VISION_WIDTH,
    attached,
    build,
    clip_adapter_file,
    dassl,
    golden,
    image_features,
    maple_weights,
    noise,
    pixel_values,
    text_features,
)
from graph_adapter_references import add_prompts, hf_clip, hf_image_features
from tritonclip_export.adapters.graph import read_graph_adapter
from tritonclip_export.checkpoints.model import new_model
from tritonclip_export.frameworks import torch

TOLERANCE = 2e-5
WIDTH, EMBED_DIM, TOKENS = VISION_WIDTH, MODEL_CFG["embed_dim"], 3


def hf_features(model: Any) -> torch.Tensor:
    return hf_image_features(model, pixel_values())


def prompted(first: torch.Tensor, deep: dict[int, torch.Tensor], *, append_before_norm: bool) -> torch.Tensor:
    """Features of Hugging Face's CLIP with prompts."""
    model = hf_clip()
    add_prompts(model, first, deep, append_before_norm=append_before_norm)
    return hf_features(model)


def largest(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one - other).abs().max().item()


@pytest.fixture
def clip_adapter(tmp_path: Path) -> Path:
    return clip_adapter_file(tmp_path)


@pytest.mark.parametrize("ratio", [0.2, 0.6])
def test_clip_adapter(ratio: float, clip_adapter: Path) -> None:
    weights = torch.load(clip_adapter, weights_only=False)["state_dict"]
    layers = nn.Sequential(
        nn.Linear(EMBED_DIM, EMBED_DIM // 4, bias=False), nn.ReLU(),
        nn.Linear(EMBED_DIM // 4, EMBED_DIM, bias=False), nn.ReLU(),
    )  # fmt: skip
    layers.load_state_dict({name.removeprefix("fc."): value for name, value in weights.items()})
    plain = hf_features(hf_clip())
    with torch.no_grad():
        expected = ratio * layers(plain) + (1 - ratio) * plain
    options = {} if ratio == 0.2 else {"ratio": ratio}
    # The file, and the folder that dassl put it in.
    for path in (clip_adapter, clip_adapter.parent):
        model = attached(path, **options)
        assert largest(image_features(model), expected) < TOLERANCE
        assert torch.equal(text_features(model), text_features(build()))
    assert largest(expected, plain) > 0.1


def test_clip_adapter_of_a_whole_model_and_its_digest(clip_adapter: Path, tmp_path: Path) -> None:
    weights = torch.load(clip_adapter, weights_only=False)["state_dict"]
    whole = {f"module.adapter.{name}": value for name, value in weights.items()}
    path = dassl(tmp_path / "whole" / "model.pth.tar-50", {**whole, "module.text_encoder.mlp.c_fc.weight": noise(2, 2)})
    assert torch.equal(image_features(attached(path)), image_features(attached(clip_adapter)))
    assert (
        read_graph_adapter(path).digest()
        == read_graph_adapter(clip_adapter).digest()
        != read_graph_adapter(path, ratio=0.3).digest()
    )
    assert "ratio 0.2" in read_graph_adapter(path).notes[0]


def test_clip_adapter_follows_a_resnet(clip_adapter: Path) -> None:
    resnet = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}
    model = new_model({**MODEL_CFG, "embed_dim": EMBED_DIM, "vision_cfg": {**resnet, "head_width": 8}})
    pixels = noise(2, 3, 32, 32)
    with torch.no_grad():
        plain = model.encode_image(pixels)
        read_graph_adapter(clip_adapter).attach(model)
        down, up = read_graph_adapter(clip_adapter).tensors.values()
        expected = 0.2 * ((plain @ down.T).relu() @ up.T).relu() + 0.8 * plain
        assert largest(model.encode_image(pixels), expected) < TOLERANCE


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("projected", [False, True])
def test_vpt(depth: int, projected: bool, tmp_path: Path) -> None:
    inner = 7 if projected else WIDTH
    first, deep = noise(1, TOKENS, inner), noise(depth, TOKENS, inner, seed=1)
    weight, bias = noise(WIDTH, inner, seed=2), noise(WIDTH, seed=3)
    names = {"prompt_embeddings": first}
    if depth:
        names["deep_prompt_embeddings"] = deep
    if projected:
        names |= {"prompt_proj.weight": weight, "prompt_proj.bias": bias}
    path = tmp_path / "vpt.pth"
    weights = {f"enc.transformer.{name}": value for name, value in names.items()}
    torch.save({"model": {**weights, "head.last_layer.weight": noise(5, WIDTH)}}, path)

    def project(prompts):
        return prompts @ weight.T + bias if projected else prompts

    expected = prompted(project(first[0]), {1: project(deep[0])} if depth else {}, append_before_norm=False)
    model = attached(path)
    assert largest(image_features(model), expected) < TOLERANCE
    assert torch.equal(text_features(model), text_features(build()))
    assert largest(expected, hf_features(hf_clip())) > 0.1


@pytest.mark.parametrize("depth", [0, 1])
def test_the_image_prompts_of_maple(depth: int, tmp_path: Path) -> None:
    weights = maple_weights(depth)
    path = dassl(tmp_path / "MultiModalPromptLearner" / "model.pth.tar-5", weights)
    learned = {name.removeprefix("prompt_learner."): value.float() for name, value in weights.items()}
    first = learned["ctx"] @ learned["proj.weight"].T + learned["proj.bias"]
    deep = {}
    if depth:
        projection = [learned[f"compound_prompt_projections.0.{kind}"] for kind in ("weight", "bias")]
        deep[1] = learned["compound_prompts_text.0"] @ projection[0].T + projection[1]
    graph_adapter = read_graph_adapter(path)
    assert largest(image_features(attached(path)), prompted(first, deep, append_before_norm=True)) < TOLERANCE
    assert "not in the text tower that is served" in graph_adapter.notes[0]


def test_the_image_prompts_of_independent_prompting(tmp_path: Path) -> None:
    first, deep = noise(TOKENS, WIDTH), noise(TOKENS, WIDTH, seed=1)
    image = {"image_encoder.VPT": first, "image_encoder.transformer.resblocks.1.VPT_shallow": deep}
    path = dassl(tmp_path / "a" / "model.pth.tar-5", image)
    assert largest(image_features(attached(path)), prompted(first, {1: deep}, append_before_norm=True)) < TOLERANCE
    assert read_graph_adapter(path).notes == ()
    with_text = {**image, "prompt_learner.ctx": noise(4, 16)}
    assert "class features" in read_graph_adapter(dassl(tmp_path / "b" / "model.pth.tar-5", with_text)).notes[0]


def test_methods_on_different_parts_go_together(clip_adapter: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "vpt.pth"
    torch.save({"prompt_embeddings": noise(1, 2, WIDTH), "deep_prompt_embeddings": noise(1, 2, WIDTH, seed=1)}, prompts)
    orders = [(GOLDEN / "houlsby", prompts, clip_adapter, GOLDEN / "lora"), (GOLDEN / "lora", clip_adapter, prompts,
              GOLDEN / "houlsby")]  # fmt: skip
    features = []
    for order in orders:
        model = build()
        for path in order:
            read_graph_adapter(path).attach(model)
        features.append(image_features(model))
    assert largest(*features) < TOLERANCE
    assert largest(features[0], golden("houlsby", "image")) > 0.1
