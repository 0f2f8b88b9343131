"""Files of loralib and loraclip: merged, they answer as the layers of those tools do unmerged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

import lora_layers as layers
from lora_files import TOLERANCE, assert_merged_equals, embeddings, merge_file
from lora_models import hf_embeddings, largest_difference, plain_model, quiet, random_state_dict
from tritonclip_export.adapters.lora import read_adapter
from tritonclip_export.adapters.lora.unmerged import attach_unmerged
from tritonclip_export.adapters.lora.weights import base_weights
from tritonclip_export.errors import AdapterError
from tritonclip_export.frameworks import torch

STATE_DICT = random_state_dict()
ALPHA, RANK = layers.ALPHA, layers.RANK


@pytest.fixture
def model() -> Any:
    torch.manual_seed(11)
    return plain_model("open_clip", STATE_DICT)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_loralib_linear_embedding_and_convolution(suffix: str, model: Any, tmp_path: Path) -> None:
    layers.adapt_mlp(model)
    model.token_embedding = layers.Embedding(model.token_embedding, RANK, ALPHA / RANK)
    model.visual.conv1 = layers.Conv2d(model.visual.conv1, RANK, ALPHA / RANK)
    path = tmp_path / f"lora{suffix}"
    save = torch.save if suffix == ".pt" else save_file
    save(layers.lora_only(model), path)
    assert_merged_equals(embeddings(model), STATE_DICT, path, alpha=ALPHA)


@pytest.mark.parametrize("enabled", ["qkv", "qv", "k"])
def test_loralib_merged_linear(enabled: str, model: Any, tmp_path: Path) -> None:
    layers.adapt_attention(model, enabled)
    path = tmp_path / "lora.pt"
    torch.save(layers.lora_only(model), path)
    named = None if enabled == "qkv" else f"loralib:{enabled}"
    assert_merged_equals(embeddings(model), STATE_DICT, path, alpha=ALPHA, format=named)


def test_loralib_groups_that_the_file_does_not_name(model: Any, tmp_path: Path) -> None:
    layers.adapt_attention(model, "qv")
    path = tmp_path / "lora.pt"
    torch.save(layers.lora_only(model), path)
    with pytest.raises(AdapterError, match=r"adapts 2 of query, key and value.*loralib:qk, loralib:qv, loralib:kv"):
        read_adapter(path, alpha=ALPHA)


def test_loralib_separate_projections(model: Any, tmp_path: Path) -> None:
    for block in layers.blocks(model, "vision"):
        block.attn = layers.Attention(block.attn)
        for name in ("q_proj", "v_proj", "proj"):
            setattr(block.attn, name, layers.Linear(getattr(block.attn, name), RANK, ALPHA / RANK))
    path = tmp_path / "lora.pt"
    torch.save(layers.lora_only(model), path)
    result = assert_merged_equals(embeddings(model), STATE_DICT, path, alpha=ALPHA)
    assert result.report.adapters[0].folded == 6


@pytest.mark.parametrize("merged", [False, True])
def test_loralib_whole_state_dict_in_training_and_in_eval_mode(merged: bool, model: Any, tmp_path: Path) -> None:
    layers.adapt_mlp(model)
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
    layers.adapt_mlp(model)
    with torch.no_grad():
        model.ln_final.bias.add_(0.3)
    path = tmp_path / "lora.pt"
    torch.save(model.state_dict(), path)
    result = assert_merged_equals(embeddings(model), STATE_DICT, path, alpha=ALPHA)
    assert result.report.adapters[0].replaced == ("text_model.final_layer_norm.bias",)


def test_loralib_file_of_another_base(model: Any, tmp_path: Path) -> None:
    layers.adapt_mlp(model)
    path = tmp_path / "lora.pt"
    torch.save(model.state_dict(), path)
    with pytest.raises(AdapterError, match="neither this model's nor this model's with the LoRA merged"):
        merge_file(random_state_dict(seed=5), path, alpha=ALPHA)


def test_loralib_needs_alpha(model: Any, tmp_path: Path) -> None:
    layers.adapt_mlp(model)
    torch.save(layers.lora_only(model), tmp_path / "lora.pt")
    with pytest.raises(AdapterError, match=r"does not store alpha; give the lora_alpha of the training \(--lora-alpha"):
        read_adapter(tmp_path / "lora.pt")


def test_loralib_wrong_alpha_would_fail(model: Any, tmp_path: Path) -> None:
    layers.adapt_mlp(model)
    torch.save(layers.lora_only(model), tmp_path / "lora.pt")
    with pytest.raises(AssertionError):
        assert_merged_equals(embeddings(model), STATE_DICT, tmp_path / "lora.pt", alpha=ALPHA + 1)


def test_loralib_half_a_pair(model: Any, tmp_path: Path) -> None:
    layers.adapt_mlp(model)
    tensors = layers.lora_only(model)
    del tensors["transformer.resblocks.0.mlp.c_fc.lora_B"]
    torch.save(tensors, tmp_path / "lora.pt")
    with pytest.raises(AdapterError, match=r"resblocks\.0\.mlp\.c_fc .* has lora_A but no lora_B"):
        read_adapter(tmp_path / "lora.pt", alpha=ALPHA)


def test_loralib_rank_that_is_not_the_files(model: Any, tmp_path: Path) -> None:
    layers.adapt_mlp(model)
    torch.save(layers.lora_only(model), tmp_path / "lora.pt")
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


def test_peft_runs_what_was_read_unmerged(model: Any, tmp_path: Path) -> None:
    layers.adapt_mlp(model)
    model.visual.conv1 = layers.Conv2d(model.visual.conv1, RANK, ALPHA / RANK)
    torch.save(model.state_dict(), tmp_path / "lora.pt")
    base = plain_model("hf", STATE_DICT)
    with quiet():
        attach_unmerged(base, [(read_adapter(tmp_path / "lora.pt", alpha=ALPHA), 1.0)], base_weights("hf", STATE_DICT))
    assert largest_difference(hf_embeddings(base), embeddings(model)) <= TOLERANCE
