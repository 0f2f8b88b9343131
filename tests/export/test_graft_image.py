"""CLIP-Adapter, VPT and MaPLe's image prompts against their papers' formulas on Hugging Face's CLIP."""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from graft_models import (
    GOLDEN,
    MODEL_CFG,
    VISION_WIDTH,
    build,
    golden,
    image_features,
    pixel_values,
    state_dict,
    text_features,
)
from tritonclip_export.checkpoint import new_model
from tritonclip_export.errors import AdapterError
from tritonclip_export.frameworks import torch
from tritonclip_export.grafts import is_graft, read_graft
from tritonclip_export.hf_clip import build_hf_clip

TOLERANCE = 2e-5
WIDTH, EMBED_DIM, TOKENS = VISION_WIDTH, MODEL_CFG["embed_dim"], 3


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dassl(path: Path, weights: dict[str, torch.Tensor]) -> Path:
    """A checkpoint as dassl writes it: with the optimizer's state and a scheduler that is an object."""
    optimizer = SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    scheduler = CosineAnnealingLR(optimizer, 10)
    training = {
        "epoch": 4,
        "optimizer": optimizer.state_dict(),
        "scheduler": {"last_epoch": 3, "successor": scheduler, "base_lrs": [0.1]},
        "val_result": np.float64(71.5),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": weights, **training}, path)
    (path.parent / "checkpoint").write_text(path.name)
    return path


def hf_clip():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return build_hf_clip(MODEL_CFG, state_dict())


def hf_features(model) -> torch.Tensor:
    with torch.no_grad():
        return model.visual_projection(model.vision_model(pixel_values=pixel_values()).pooler_output)


def prompted(first, deep, *, append_before_norm: bool) -> torch.Tensor:
    """Features of Hugging Face's CLIP with the prompts after the class token, or at the end and before the norm."""
    model = hf_clip()
    count = len(first)

    def joined(_, __, hidden):
        prompts = first.expand(len(hidden), -1, -1)
        parts = [hidden, prompts] if append_before_norm else [hidden[:, :1], prompts, hidden[:, 1:]]
        return torch.cat(parts, dim=1)

    def overwritten(prompts):
        def hook(_, args):
            values = prompts.expand(len(args[0]), -1, -1)
            hidden = args[0].clone()
            if append_before_norm:
                hidden[:, -count:] = values
            else:
                hidden[:, 1 : 1 + count] = values
            return (hidden, *args[1:])

        return hook

    vision = model.vision_model
    (vision.embeddings if append_before_norm else vision.pre_layrnorm).register_forward_hook(joined)
    for layer, prompts in deep.items():
        vision.encoder.layers[layer].register_forward_pre_hook(overwritten(prompts))
    return hf_features(model)


def attached(path: Path, **options):
    model = build()
    read_graft(path, **options).attach(model)
    return model


def largest(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one - other).abs().max().item()


@pytest.fixture
def clip_adapter(tmp_path: Path) -> Path:
    weights = {"fc.0.weight": noise(EMBED_DIM // 4, EMBED_DIM), "fc.2.weight": noise(EMBED_DIM, EMBED_DIM // 4)}
    return dassl(tmp_path / "clip_adapter" / "model-best.pth.tar", weights)


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
    assert read_graft(path).digest() == read_graft(clip_adapter).digest() != read_graft(path, ratio=0.3).digest()
    assert "ratio 0.2" in read_graft(path).notes[0]


def test_clip_adapter_follows_a_resnet(clip_adapter: Path) -> None:
    resnet = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}
    model = new_model({**MODEL_CFG, "embed_dim": EMBED_DIM, "vision_cfg": {**resnet, "head_width": 8}})
    pixels = noise(2, 3, 32, 32)
    with torch.no_grad():
        plain = model.encode_image(pixels)
        read_graft(clip_adapter).attach(model)
        down, up = read_graft(clip_adapter).tensors.values()
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


def maple_weights(depth: int) -> dict[str, torch.Tensor]:
    text = 16
    weights = {"ctx": noise(2, text), "proj.weight": noise(WIDTH, text, seed=1), "proj.bias": noise(WIDTH, seed=2)}
    for layer in range(depth):
        weights |= {
            f"compound_prompts_text.{layer}": noise(2, text, seed=3),
            f"compound_prompt_projections.{layer}.weight": noise(WIDTH, text, seed=4),
            f"compound_prompt_projections.{layer}.bias": noise(WIDTH, seed=5),
        }
    weights["token_prefix"] = noise(4, 1, text)
    whole = {f"prompt_learner.{name}": value.half() for name, value in weights.items()}
    return {**whole, "image_encoder.conv1.weight": noise(WIDTH, 3, 8, 8)}


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
    graft = read_graft(path)
    assert largest(image_features(attached(path)), prompted(first, deep, append_before_norm=True)) < TOLERANCE
    assert "not in the text tower that is served" in graft.notes[0]


def test_the_image_prompts_of_independent_prompting(tmp_path: Path) -> None:
    first, deep = noise(TOKENS, WIDTH), noise(TOKENS, WIDTH, seed=1)
    image = {"image_encoder.VPT": first, "image_encoder.transformer.resblocks.1.VPT_shallow": deep}
    path = dassl(tmp_path / "a" / "model.pth.tar-5", image)
    assert largest(image_features(attached(path)), prompted(first, {1: deep}, append_before_norm=True)) < TOLERANCE
    assert read_graft(path).notes == ()
    with_text = {**image, "prompt_learner.ctx": noise(4, 16)}
    assert "class features" in read_graft(dassl(tmp_path / "b" / "model.pth.tar-5", with_text)).notes[0]


def test_methods_on_different_parts_go_together(clip_adapter: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "vpt.pth"
    torch.save({"prompt_embeddings": noise(1, 2, WIDTH), "deep_prompt_embeddings": noise(1, 2, WIDTH, seed=1)}, prompts)
    orders = [(GOLDEN / "houlsby", prompts, clip_adapter, GOLDEN / "lora"), (GOLDEN / "lora", clip_adapter, prompts,
              GOLDEN / "houlsby")]  # fmt: skip
    features = []
    for order in orders:
        model = build()
        for path in order:
            read_graft(path).attach(model)
        features.append(image_features(model))
    assert largest(*features) < TOLERANCE
    assert largest(features[0], golden("houlsby", "image")) > 0.1


def save(path: Path, **tensors: torch.Tensor) -> Path:
    torch.save({name.replace("__", "."): tensor for name, tensor in tensors.items()}, path)
    return path


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"fc.0.weight": noise(6, 24), "fc.2.weight": noise(24, 6)}, "is of 24 dimensions, and .* have 20"),
        ({"prompt_embeddings": noise(1, 2, 30)}, "are 30 wide, and the image tower is 24 wide"),
        (
            {"prompt_embeddings": noise(1, 2, WIDTH), "deep_prompt_embeddings": noise(4, 2, WIDTH)},
            "prompts for layer 4 of the image tower, and the model's has 2",
        ),
    ],
)
def test_what_does_not_fit_is_named_and_the_model_stays_as_it_was(tensors, message: str, tmp_path: Path) -> None:
    torch.save(tensors, tmp_path / "adapter.pth")
    model = build()
    with pytest.raises(AdapterError, match=message):
        read_graft(tmp_path / "adapter.pth").attach(model)
    assert torch.equal(image_features(model), image_features(build()))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"meta_net.linear1.weight": noise(2, 2), "ctx": noise(4, 16)}, "CoCoOp .* text tower depends on the image"),
        ({"prompt_learner.meta_net.linear2.bias": noise(2), "prompt_learner.ctx": noise(4, 16)}, "CoCoOp"),
        ({"adapter.cross_attn.in_proj_weight": noise(6, 2)}, "attention joins both towers"),
        ({"multimodal_adapter.attn.q.weight": noise(6, 2)}, "attention joins both towers"),
        ({"ctx": noise(4, 16), "token_prefix": noise(3, 1, 16)}, "CoOp's.*classifier build"),
    ],
)
def test_methods_that_are_no_two_towers_are_refused_with_the_reason(tensors, message: str, tmp_path: Path) -> None:
    path = dassl(tmp_path / "prompt_learner" / "model.pth.tar-50", tensors)
    assert is_graft(path)
    with pytest.raises(AdapterError, match=message):
        read_graft(path)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"something.weight": noise(2, 2)}, "of no known format .first tensor: something.weight.; give one of"),
        ({"fc.0.weight": noise(5, 20), "fc.2.weight": noise(20, 4)}, r"allowed: \(C / 4, C\)"),
        (
            {"fc.0.weight": noise(5, 20), "fc.0.bias": noise(5), "fc.2.weight": noise(20, 5)},
            "fc.0.bias, .*without",
        ),
        ({f"{tower}.fc.{layer}.weight": noise(5, 5) for tower in "ab" for layer in (0, 2)}, "once and without"),
        ({"deep_prompt_embeddings": noise(1, 2, 24)}, "no prompt_embeddings"),
        ({"prompt_embeddings": noise(2, 24)}, r"allowed: \(1, tokens, width\)"),
        ({"prompt_embeddings": noise(1, 2, 24), "deep_prompt_embeddings": noise(1, 3, 24)}, "one shape"),
        ({"prompt_embeddings": noise(1, 2, 24) / 0}, "hold NaN or infinity"),
        ({"prompt_learner.compound_prompts_text.0": noise(2, 16)}, "no prompt_learner.ctx"),
        ({**maple_weights(0), "prompt_learner.compound_prompts_text.0": noise(2, 16)}, "no whole linear layer"),
    ],
)
def test_broken_files_are_refused(tensors, message: str, tmp_path: Path) -> None:
    torch.save(tensors, tmp_path / "adapter.pth")
    with pytest.raises(AdapterError, match=message):
        read_graft(tmp_path / "adapter.pth")


def test_a_tower_without_class_token_pooling_is_refused(tmp_path: Path) -> None:
    torch.save({"prompt_embeddings": noise(1, 2, WIDTH)}, tmp_path / "vpt.pth")
    average = new_model({**MODEL_CFG, "vision_cfg": {**MODEL_CFG["vision_cfg"], "pool_type": "avg"}})
    with pytest.raises(AdapterError, match="pool their class token"):
        read_graft(tmp_path / "vpt.pth").attach(average)


def test_twice_the_same_is_refused(clip_adapter: Path, tmp_path: Path) -> None:
    torch.save({"prompt_embeddings": noise(1, 2, WIDTH)}, tmp_path / "vpt.pth")
    for path, message in ((clip_adapter, "a CLIP-Adapter already"), (tmp_path / "vpt.pth", "prompts already")):
        model = attached(path)
        with pytest.raises(AdapterError, match=message):
            read_graft(path).attach(model)


class RunsCode:
    """Creates a file when it is read by an ordinary unpickler."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


@pytest.mark.parametrize("place", ["state_dict", "scheduler"])
def test_a_pickle_that_wants_to_run_code_is_refused(place: str, tmp_path: Path) -> None:
    content = {"state_dict": {"fc.0.weight": noise(5, 20), "fc.2.weight": noise(20, 5)}}
    content.setdefault(place, {})["evil"] = RunsCode(tmp_path / "trace")
    torch.save(content, tmp_path / "model.pth.tar")
    with pytest.raises(AdapterError, match=r"would run code when read \(it names .*\); if you trust it"):
        read_graft(tmp_path / "model.pth.tar")
    assert not (tmp_path / "trace").exists()


def test_the_training_state_is_never_built(clip_adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CosineAnnealingLR, "__setstate__", lambda *_: pytest.fail("was built"), raising=False)
    assert read_graft(clip_adapter).method == "CLIP-Adapter"


def test_files_that_are_cut_off_or_of_another_kind_are_refused(clip_adapter: Path, tmp_path: Path) -> None:
    whole = clip_adapter.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"text", whole[:200] + whole[900:]):
        file = tmp_path / "broken.pth.tar"
        file.write_bytes(content)
        assert not is_graft(file)
        with pytest.raises(AdapterError, match=re.escape(str(file))):
            read_graft(file)
