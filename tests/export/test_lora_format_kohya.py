"""Files of kohya's sd-scripts and of LyCORIS: merged, they answer as PEFT's layers do unmerged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_files import (
    ALL_OF_TEXT,
    TEXT,
    TOLERANCE,
    Tensors,
    assert_merged_equals,
    kohya_names,
    merge_file,
    peft_trained,
    saved,
    text_lora,
)
from lora_models import (
    MODEL_CFG,
    Embeddings,
    hf_embeddings,
    largest_difference,
    new_model,
    open_clip_embeddings,
    peft_wrap,
    plain_model,
    random_state_dict,
)
from tritonclip_export.adapters.lora import read_adapter
from tritonclip_export.errors import AdapterError
from tritonclip_export.frameworks import torch

STATE_DICT = random_state_dict()


def trained(config: Any) -> tuple[Embeddings, Tensors]:
    return peft_trained(config, STATE_DICT)


@pytest.mark.parametrize("half", [False, True])
def test_kohya(half: bool, tmp_path: Path) -> None:
    expected, tensors = trained(text_lora())
    if half:
        tensors = {key: tensor.half() for key, tensor in tensors.items()}
        expected, _ = trained_with(tensors)
    result = assert_merged_equals(expected, STATE_DICT, saved(tmp_path / "te.safetensors", kohya_names(tensors)))
    assert result.report.adapters[0].folded == 12


def trained_with(tensors: Tensors) -> tuple[Embeddings, Tensors]:
    """PEFT's forward with exactly these values."""
    from peft import set_peft_model_state_dict

    base = plain_model("hf", STATE_DICT)
    model = peft_wrap(base, peft_config=text_lora())
    set_peft_model_state_dict(model, {f"base_model.model.{key}": tensor.float() for key, tensor in tensors.items()})
    model.eval()
    return hf_embeddings(base), tensors


def test_kohya_text_projection(tmp_path: Path) -> None:
    expected, tensors = trained(text_lora(TEXT.format("fc1") + "|.*text_projection"))
    assert_merged_equals(expected, STATE_DICT, saved(tmp_path / "a.safetensors", kohya_names(tensors, "te2")))


@pytest.mark.parametrize("stored", [None, 0])
def test_kohya_alpha_that_is_missing_or_zero_is_the_rank(stored: float | None, tmp_path: Path) -> None:
    expected, tensors = trained(text_lora(lora_alpha=4))
    assert_merged_equals(expected, STATE_DICT, saved(tmp_path / "a.safetensors", kohya_names(tensors, alpha=stored)))


def test_kohya_ranks_and_alphas_of_their_own(tmp_path: Path) -> None:
    patterns = {"rank_pattern": {"fc1": 2, "layers.0.self_attn.q_proj": 7}, "alpha_pattern": {"fc1": 3}}
    expected, tensors = trained(text_lora(**patterns))
    named = kohya_names(tensors)
    for key in named:
        if key.endswith("fc1.alpha"):
            named[key] = torch.tensor(3.0)
    assert_merged_equals(expected, STATE_DICT, saved(tmp_path / "a.safetensors", named))


def test_kohya_dora(tmp_path: Path) -> None:
    expected, tensors = trained(text_lora(use_dora=True))
    assert_merged_equals(expected, STATE_DICT, saved(tmp_path / "a.safetensors", kohya_names(tensors)))


def test_lycoris_dora_by_input(tmp_path: Path) -> None:
    """wd_on_out=False: V = W + s B A, then V * m / ||V|| with the norm of every column."""
    name, weight = "transformer.resblocks.1.mlp.c_fc", STATE_DICT["transformer.resblocks.1.mlp.c_fc.weight"]
    torch.manual_seed(5)
    down, up, magnitude = torch.randn(4, 32), torch.randn(128, 4), torch.rand(1, 32) + 0.5
    adapted = weight + 2 * up @ down
    expected = {**STATE_DICT, f"{name}.weight": adapted * magnitude / adapted.norm(dim=0, keepdim=True)}
    parts = {"lora_down.weight": down, "lora_up.weight": up, "dora_scale": magnitude, "alpha": torch.tensor(8.0)}
    module = "lora_te_text_model_encoder_layers_1_mlp_fc1"
    path = saved(tmp_path / "a.safetensors", {f"{module}.{part}": tensor for part, tensor in parts.items()})
    merged = merge_file(STATE_DICT, path).state_dict
    torch.testing.assert_close(merged[f"{name}.weight"], expected[f"{name}.weight"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["loha", "lokr", "lokr, both decomposed"])
def test_lycoris_methods(method: str, tmp_path: Path) -> None:
    from peft import LoHaConfig, LoKrConfig

    # LyCORIS scales two whole factors by 1 and PEFT by alpha / r, so those are compared where both are 1.
    settings: dict[str, Any] = {"r": 4, "alpha": 4, "target_modules": ALL_OF_TEXT, "init_weights": False}
    both = method.endswith("decomposed")
    if both:
        settings |= {"r": 2, "alpha": 6, "decompose_both": True, "decompose_factor": 4}
        settings |= {"target_modules": TEXT.format("fc1|fc2")}
    if method == "loha":
        settings |= {"alpha": 8}
    expected, tensors = trained(LoHaConfig(**settings) if method == "loha" else LoKrConfig(**settings))
    if both:
        assert any("lokr_w2_a" in key for key in tensors)
    path = saved(tmp_path / "a.safetensors", kohya_names(tensors, alpha=settings["alpha"]))
    assert_merged_equals(expected, STATE_DICT, path)


def test_other_models_in_the_file_are_counted(tmp_path: Path) -> None:
    expected, tensors = trained(text_lora())
    others = {
        "lora_unet_down_blocks_0.lora_up.weight": torch.ones(2, 2),
        "lora_te3_encoder_block_0.alpha": torch.ones(1),
    }
    path = saved(tmp_path / "a.safetensors", {**kohya_names(tensors), **others})
    assert_merged_equals(expected, STATE_DICT, path)
    assert read_adapter(path).notes == ("2 tensors of other models than CLIP (U-Net, T5) were left out",)
    with pytest.raises(AdapterError, match="no LoRA of a CLIP text encoder, only of other models"):
        read_adapter(saved(tmp_path / "b.safetensors", others))


def two_encoders(width: int = 48) -> tuple[Embeddings, Tensors]:
    """Two LoRAs in one file; the first is of the small CLIP, the second of one whose text tower has `width`."""
    expected, first = trained(text_lora())
    torch.manual_seed(10)
    second = {}
    for key, tensor in first.items():
        shape = [width * side // 32 if side >= 32 else side for side in tensor.shape]
        second[key] = torch.randn(shape)
    return expected, {**kohya_names(first, "te1"), **kohya_names(second, "te2")}


def test_encoder_that_fits_is_taken(tmp_path: Path) -> None:
    expected, tensors = two_encoders()
    path = saved(tmp_path / "a.safetensors", tensors)
    assert_merged_equals(expected, STATE_DICT, path)
    with pytest.raises(AdapterError, match=r"has no text encoder 'te'; allowed: kohya:te1, kohya:te2"):
        read_adapter(path, format="kohya:te")
    with pytest.raises(AdapterError, match="another model"):
        merge_file(STATE_DICT, path, format="kohya:te2")


def test_encoders_that_both_fit_are_refused(tmp_path: Path) -> None:
    expected, tensors = two_encoders(width=32)
    path = saved(tmp_path / "a.safetensors", tensors)
    with pytest.raises(
        AdapterError, match="several LoRAs that fit this model; name one by the format: kohya:te1, kohya:te2"
    ):
        merge_file(STATE_DICT, path)
    assert_merged_equals(expected, STATE_DICT, path, format="kohya:te1")


def test_encoders_that_none_fits_are_refused(tmp_path: Path) -> None:
    _, tensors = two_encoders()
    wide = new_model({**MODEL_CFG, "text_cfg": {**MODEL_CFG["text_cfg"], "width": 64}}).state_dict()
    with pytest.raises(AdapterError, match=r"several LoRAs \(kohya:te1, kohya:te2\), and none fits"):
        merge_file(wide, saved(tmp_path / "a.safetensors", tensors))


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_mid.weight", "has lora_mid.weight beside lora_down.weight"),
        (
            "lora_te_text_model_final_layer_norm.w_norm",
            r"1 tensors .* no place in a LoRA of CLIP's text tower in kohya",
        ),
        ("lora_te_text_model_encoder_layers_0_mlp_fc2.oft_blocks", "no place in a LoRA, LoHa or LoKr layer"),
        ("something.else", "no place in a LoRA of CLIP's text tower in kohya"),
    ],
)
def test_kohya_parts_that_cannot_be_merged(extra: str, words: str, tmp_path: Path) -> None:
    _, tensors = trained(text_lora(TEXT.format("fc1")))
    path = saved(tmp_path / "a.safetensors", {**kohya_names(tensors), extra: torch.ones(1)})
    with pytest.raises(AdapterError, match=words):
        read_adapter(path)


def test_kohya_half_a_pair(tmp_path: Path) -> None:
    _, tensors = trained(text_lora(TEXT.format("fc1")))
    kept = {key: tensor for key, tensor in kohya_names(tensors).items() if "layers_0_mlp_fc1.lora_up" not in key}
    with pytest.raises(AdapterError, match=r"layers\.0\.mlp\.fc1 .* has lora_down\.weight but no lora_up\.weight"):
        read_adapter(saved(tmp_path / "a.safetensors", kept))


def test_tolerance_sees_a_scale_that_is_half_a_percent_off(tmp_path: Path) -> None:
    expected, tensors = trained(text_lora())
    path = saved(tmp_path / "a.safetensors", kohya_names(tensors, alpha=8 * 1.005))
    assert largest_difference(open_clip_embeddings(merge_file(STATE_DICT, path).state_dict), expected) > 2 * TOLERANCE
