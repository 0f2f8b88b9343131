"""Files of loralib, loraclip and CLIP-LoRA: merged, they answer as the layers of those tools do unmerged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

import lora_layers as layers
from lora_files import TOLERANCE, assert_merged_equals, embeddings, merge_file
from lora_models import MODEL_CFG, hf_embeddings, largest_difference, plain_model, quiet, random_state_dict
from tritonclip_export.checkpoint import load_strictly, new_model
from tritonclip_export.errors import AdapterError
from tritonclip_export.frameworks import torch
from tritonclip_export.lora import read_adapter
from tritonclip_export.lora.fit import fit_adapter
from tritonclip_export.lora.formats.as_peft import save_as_peft
from tritonclip_export.lora.weights import base_weights

STATE_DICT = random_state_dict()
ALPHA, RANK = 6, 3


@pytest.fixture
def model() -> Any:
    torch.manual_seed(11)
    # A copy, because the model takes the tensors as they are and these tests change them in place.
    return plain_model("open_clip", {name: tensor.clone() for name, tensor in STATE_DICT.items()})


def lora_only(model: Any) -> dict[str, torch.Tensor]:
    """loralib's `lora_state_dict(model)`."""
    return {key: tensor for key, tensor in model.state_dict().items() if "lora_" in key}


def adapt_mlp(model: Any, towers: Sequence[str] = ("text", "vision")) -> None:
    for block in layers.blocks(model, *towers):
        for name in ("c_fc", "c_proj"):
            setattr(block.mlp, name, layers.Linear(getattr(block.mlp, name), RANK, ALPHA / RANK))


def adapt_attention(model: Any, enabled: str) -> None:
    for block in layers.blocks(model, "text", "vision"):
        block.attn = layers.FusedAttention(block.attn)
        base = block.attn.qkv
        groups = [letter in enabled for letter in "qkv"]
        block.attn.qkv = layers.MergedLinear(base.weight.data, base.bias.data, groups, RANK, ALPHA / RANK)
        block.attn.proj = layers.Linear(block.attn.proj, RANK, ALPHA / RANK)


# loralib


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_loralib_linear_embedding_and_convolution(suffix: str, model: Any, tmp_path: Path) -> None:
    adapt_mlp(model)
    model.token_embedding = layers.Embedding(model.token_embedding, RANK, ALPHA / RANK)
    model.visual.conv1 = layers.Conv2d(model.visual.conv1, RANK, ALPHA / RANK)
    path = tmp_path / f"lora{suffix}"
    save = torch.save if suffix == ".pt" else save_file
    save(lora_only(model), path)
    assert_merged_equals(embeddings(model), STATE_DICT, path, alpha=ALPHA)


@pytest.mark.parametrize("enabled", ["qkv", "qv", "k"])
def test_loralib_merged_linear(enabled: str, model: Any, tmp_path: Path) -> None:
    adapt_attention(model, enabled)
    path = tmp_path / "lora.pt"
    torch.save(lora_only(model), path)
    named = None if enabled == "qkv" else f"loralib:{enabled}"
    assert_merged_equals(embeddings(model), STATE_DICT, path, alpha=ALPHA, format=named)


def test_loralib_groups_that_the_file_does_not_name(model: Any, tmp_path: Path) -> None:
    adapt_attention(model, "qv")
    path = tmp_path / "lora.pt"
    torch.save(lora_only(model), path)
    with pytest.raises(AdapterError, match=r"adapts 2 of query, key and value.*loralib:qk, loralib:qv, loralib:kv"):
        read_adapter(path, alpha=ALPHA)


def test_loralib_separate_projections(model: Any, tmp_path: Path) -> None:
    for block in layers.blocks(model, "vision"):
        block.attn = layers.Attention(block.attn)
        for name in ("q_proj", "v_proj", "proj"):
            setattr(block.attn, name, layers.Linear(getattr(block.attn, name), RANK, ALPHA / RANK))
    path = tmp_path / "lora.pt"
    torch.save(lora_only(model), path)
    result = assert_merged_equals(embeddings(model), STATE_DICT, path, alpha=ALPHA)
    assert result.report.adapters[0].folded == 6


@pytest.mark.parametrize("merged", [False, True])
def test_loralib_whole_state_dict_in_training_and_in_eval_mode(merged: bool, model: Any, tmp_path: Path) -> None:
    adapt_mlp(model)
    expected = embeddings(model)
    if merged:
        for block in layers.blocks(model, "text", "vision"):
            block.mlp.c_fc.merge()
            block.mlp.c_proj.merge()
    path = tmp_path / "lora.pt"
    torch.save(model.state_dict(), path)
    result = assert_merged_equals(expected, STATE_DICT, path, alpha=ALPHA)
    (report,) = result.report.adapters
    assert (report.folded, len(report.replaced)) == ((0, 8) if merged else (8, 0))


def test_loralib_whole_state_dict_with_trained_biases(model: Any, tmp_path: Path) -> None:
    adapt_mlp(model)
    with torch.no_grad():
        model.ln_final.bias.add_(0.3)
    path = tmp_path / "lora.pt"
    torch.save(model.state_dict(), path)
    result = assert_merged_equals(embeddings(model), STATE_DICT, path, alpha=ALPHA)
    assert result.report.adapters[0].replaced == ("text_model.final_layer_norm.bias",)


def test_loralib_file_of_another_base(model: Any, tmp_path: Path) -> None:
    adapt_mlp(model)
    path = tmp_path / "lora.pt"
    torch.save(model.state_dict(), path)
    with pytest.raises(AdapterError, match="neither this model's nor this model's with the LoRA merged"):
        merge_file(random_state_dict(seed=5), path, alpha=ALPHA)


def test_loralib_needs_alpha(model: Any, tmp_path: Path) -> None:
    adapt_mlp(model)
    torch.save(lora_only(model), tmp_path / "lora.pt")
    with pytest.raises(AdapterError, match=r"does not store alpha; give the lora_alpha of the training \(--lora-alpha"):
        read_adapter(tmp_path / "lora.pt")


def test_loralib_wrong_alpha_would_fail(model: Any, tmp_path: Path) -> None:
    adapt_mlp(model)
    torch.save(lora_only(model), tmp_path / "lora.pt")
    with pytest.raises(AssertionError):
        assert_merged_equals(embeddings(model), STATE_DICT, tmp_path / "lora.pt", alpha=ALPHA + 1)


def test_loralib_half_a_pair(model: Any, tmp_path: Path) -> None:
    adapt_mlp(model)
    tensors = lora_only(model)
    del tensors["transformer.resblocks.0.mlp.c_fc.lora_B"]
    torch.save(tensors, tmp_path / "lora.pt")
    with pytest.raises(AdapterError, match=r"resblocks\.0\.mlp\.c_fc .* has lora_A but no lora_B"):
        read_adapter(tmp_path / "lora.pt", alpha=ALPHA)


def test_loralib_rank_that_is_not_the_files(model: Any, tmp_path: Path) -> None:
    adapt_mlp(model)
    torch.save(lora_only(model), tmp_path / "lora.pt")
    with pytest.raises(AdapterError, match="has rank 3, not 4"):
        read_adapter(tmp_path / "lora.pt", alpha=ALPHA, rank=4)


def test_loralib_convolution_whose_kernel_nothing_tells(tmp_path: Path) -> None:
    pair = {"lora_A": torch.ones(9, 24), "lora_B": torch.ones(24, 9)}
    tensors = {f"visual.layer1.0.conv2.{name}": tensor for name, tensor in pair.items()}
    torch.save(tensors, tmp_path / "lora.pt")
    with pytest.raises(AdapterError, match="nothing tells the size of its kernel"):
        read_adapter(tmp_path / "lora.pt", alpha=ALPHA)
    (conv,) = [t for key, t in read_adapter(tmp_path / "lora.pt", alpha=ALPHA, rank=3).tensors.items() if "_A" in key]
    assert conv.shape == (8, 8, 3, 3)
    with pytest.raises(AdapterError, match="no convolution with kernel 4"):
        read_adapter(tmp_path / "lora.pt", alpha=ALPHA, rank=2)


# loraclip


def as_loraclip(model: Any) -> torch.nn.Linear:
    """All that loraclip adapts, its random text projection too, which is returned."""
    for block in layers.blocks(model, "text", "vision"):
        block.attn = layers.LoraclipAttention(block.attn, RANK)
        for name in ("c_fc", "c_proj"):
            setattr(block.mlp, name, layers.Linear(getattr(block.mlp, name), RANK, 1 / RANK))
    model.token_embedding = layers.Embedding(model.token_embedding, RANK, 1 / RANK)
    width, embed = model.text_projection.shape
    return layers.Linear(torch.nn.Linear(width, embed, bias=False), RANK, 1 / RANK)


def test_loraclip(model: Any, tmp_path: Path) -> None:
    projection = as_loraclip(model)
    with torch.no_grad():
        model.visual.class_embedding.add_(0.2)
    saved = model.state_dict()
    saved.update({f"lora_text_projection.{key}": tensor for key, tensor in projection.state_dict().items()})
    torch.save(saved, tmp_path / "clip.pt")
    # The parameter of the plain model, which loraclip keeps and never uses.
    whole = projection.weight + projection.scale * projection.lora_B @ projection.lora_A
    model.text_projection = torch.nn.Parameter(whole.t())
    result = assert_merged_equals(embeddings(model), STATE_DICT, tmp_path / "clip.pt")
    replaced = result.report.adapters[0].replaced
    assert set(replaced) == {"text_projection.weight", "vision_model.embeddings.class_embedding"}


def test_loraclip_without_its_random_projection(model: Any, tmp_path: Path) -> None:
    projection = as_loraclip(model)
    saved = model.state_dict()
    saved.update({f"lora_text_projection.{key}": projection.state_dict()[key] for key in ("lora_A", "lora_B")})
    torch.save(saved, tmp_path / "clip.pt")
    with pytest.raises(AdapterError, match=r"no lora_text_projection\.weight.*at random"):
        read_adapter(tmp_path / "clip.pt")


# CLIP-LoRA


def clip_lora_base(vision_layers: int) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    cfg = {
        **MODEL_CFG,
        "vision_cfg": {**MODEL_CFG["vision_cfg"], "layers": vision_layers, "width": 32, "head_width": 16},
        "text_cfg": {**MODEL_CFG["text_cfg"], "layers": 12},
    }
    torch.manual_seed(3)
    return cfg, dict(new_model(cfg).state_dict())


def clip_lora_file(path: Path, adapted: list[Any], params: str, r: int, alpha: float, **metadata: Any) -> None:
    """CLIP-LoRA's `save_lora`, after its `apply_lora` on the blocks `adapted`."""
    names = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "proj"}
    weights: dict[str, Any] = {}
    for index, block in enumerate(adapted):
        block.attn = layers.Attention(block.attn)
        saved = {}
        for letter in params:
            layer = layers.Linear(getattr(block.attn, names[letter]), r, alpha / math.sqrt(r))
            # Many adapted blocks; smaller steps keep the features in a range where float32 is exact enough.
            layer.lora_B.data *= 0.3
            setattr(block.attn, names[letter], layer)
            saved[names[letter]] = {"w_lora_A": layer.lora_A.data, "w_lora_B": layer.lora_B.data}
        weights[f"layer_{index}"] = saved
    settings = {"r": r, "alpha": alpha, "params": list(params), **metadata}
    torch.save({"weights": weights, "metadata": settings}, path)


CLIP_LORA = {
    "both, all": ("both", "all", range(12), range(12), 12),
    "text, half-up": ("text", "half-up", range(6, 12), (), 12),
    "vision, top3": ("vision", "top3", (), range(9, 12), 12),
    "ViT-L/14, all": ("both", "all", range(12), range(24), 24),
    "ViT-L/14, all, as it was first": ("both", "all", range(12), range(21), 24),
    "ViT-L/14, half-up": ("vision", "half-up", (), range(12, 24), 24),
}


@pytest.mark.parametrize("name", CLIP_LORA)
def test_clip_lora(name: str, tmp_path: Path) -> None:
    encoder, position, text, vision, vision_layers = CLIP_LORA[name]
    cfg, state_dict = clip_lora_base(vision_layers)
    model = new_model(cfg)
    load_strictly(model, state_dict, "test")
    base = embeddings(model)
    torch.manual_seed(4)
    adapted = [layers.blocks(model, "text")[i] for i in text] + [layers.blocks(model, "vision")[i] for i in vision]
    path = tmp_path / "lora_weights.pt"
    clip_lora_file(path, adapted, "qkvo", 2, 1, encoder=encoder, position=position)
    expected = embeddings(model)
    merged = new_model(cfg)
    load_strictly(merged, merge_file(state_dict, path).state_dict, "test")
    for tower, plain, ours in zip(expected, base, embeddings(merged), strict=True):
        assert (tower - ours).abs().max() <= TOLERANCE
        changed = (tower - plain).abs().max() > 1e-3
        assert changed == (len(text if tower is expected[1] else vision) > 0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"position": "middle"}, "position in the metadata .* 'middle'; allowed: top, top1"),
        ({"encoder": "audio"}, "encoder .* 'audio'; allowed: text, vision, both"),
        ({"position": "half-up"}, "has 4 layers, but position 'half-up' of encoder 'text' has 6"),
        ({"encoder": "both"}, "has 4 layers, but position 'bottom' of encoder 'both' has 8"),
        ({"r": 3}, "has rank 2, its metadata says 3"),
        ({"alpha": None}, "alpha in the metadata .* must be a number above 0"),
    ],
)
def test_clip_lora_metadata_of_another_file(change: dict[str, Any], words: str, model: Any, tmp_path: Path) -> None:
    path = tmp_path / "lora_weights.pt"
    adapted = layers.blocks(model, "text", "vision")
    clip_lora_file(path, adapted, "q", 2, 1, encoder="text", position="bottom")
    content = torch.load(path, weights_only=True)
    content["metadata"].update(change)
    torch.save(content, path)
    with pytest.raises(AdapterError, match=words):
        read_adapter(path)


def test_alpha_that_the_file_stores_otherwise(model: Any, tmp_path: Path) -> None:
    path = tmp_path / "lora_weights.pt"
    clip_lora_file(path, layers.blocks(model, "text", "vision"), "q", 2, 1, encoder="text", position="bottom")
    with pytest.raises(AdapterError, match="stores alpha 1, not 4"):
        read_adapter(path, alpha=4)


# PEFT runs what was read


def test_peft_runs_the_translation_unmerged(model: Any, tmp_path: Path) -> None:
    from peft import PeftModel

    adapt_mlp(model)
    model.visual.conv1 = layers.Conv2d(model.visual.conv1, RANK, ALPHA / RANK)
    torch.save(model.state_dict(), tmp_path / "lora.pt")
    adapter = fit_adapter(read_adapter(tmp_path / "lora.pt", alpha=ALPHA), base_weights("hf", STATE_DICT))
    (tmp_path / "as_peft").mkdir()
    base = plain_model("hf", STATE_DICT)
    with quiet():
        PeftModel.from_pretrained(base, save_as_peft(adapter, tmp_path / "as_peft")).eval()
    assert largest_difference(hf_embeddings(base), embeddings(model)) <= TOLERANCE
