"""Files of kohya's sd-scripts, LyCORIS and diffusers: merged, they answer as PEFT's layers do unmerged."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from lora_files import TOLERANCE, Tensors, assert_merged_equals, merge_file
from lora_models import (
    MODEL_CFG,
    Embeddings,
    hf_embeddings,
    largest_difference,
    new_model,
    open_clip_embeddings,
    peft_wrap,
    plain_model,
    quiet,
    random_state_dict,
)
from tritonclip_export.errors import AdapterError
from tritonclip_export.frameworks import torch
from tritonclip_export.lora import read_adapter
from tritonclip_export.lora.adapter import Adapter
from tritonclip_export.lora.fit import fit_adapter
from tritonclip_export.lora.weights import base_weights

STATE_DICT = random_state_dict()
TEXT = r".*text_model.*({})"
LORA = TEXT.format("q_proj|k_proj|v_proj|out_proj|fc1|fc2")


def trained(config: Any, state_dict: Tensors = STATE_DICT) -> tuple[Embeddings, Tensors]:
    """PEFT's unmerged forward of a whole `CLIPModel`, and the trained tensors as PEFT names them in a file."""
    from peft import get_peft_model_state_dict

    base = plain_model("hf", state_dict)
    model = peft_wrap(base, peft_config=config)
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.25 * torch.randn_like(parameter))
    with quiet():
        saved = get_peft_model_state_dict(model)
    model.eval()
    return hf_embeddings(base), {key.removeprefix("base_model.model."): tensor for key, tensor in saved.items()}


def lora(targets: str = LORA, **settings: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": targets, **settings})


# PEFT's names of a part to kohya's, which LyCORIS shares.
KOHYA_PARTS = {
    "lora_A.weight": "lora_down.weight",
    "lora_B.weight": "lora_up.weight",
    "lora_magnitude_vector": "dora_scale",
}


def kohya_names(tensors: Mapping[str, torch.Tensor], encoder: str = "te", alpha: float | None = 8) -> Tensors:
    """The tensors as sd-scripts and LyCORIS save them."""
    renamed: Tensors = {}
    for key, tensor in tensors.items():
        found = re.match(r"(.+?)\.((?:lora|hada|lokr)_.+)$", key)
        assert found, key
        module = f"lora_{encoder}_{found[1].replace('.', '_')}"
        part = KOHYA_PARTS.get(found[2], found[2])
        renamed[f"{module}.{part}"] = tensor[:, None] if part == "dora_scale" else tensor
        if alpha is not None:
            renamed[f"{module}.alpha"] = torch.tensor(float(alpha))
    return renamed


def saved(path: Path, tensors: Mapping[str, torch.Tensor], **header: str) -> Path:
    save_file({key: tensor.contiguous().clone() for key, tensor in tensors.items()}, path, header)
    return path


@pytest.mark.parametrize("half", [False, True])
def test_kohya(half: bool, tmp_path: Path) -> None:
    expected, tensors = trained(lora())
    if half:
        tensors = {key: tensor.half() for key, tensor in tensors.items()}
        expected, _ = trained_with(tensors)
    result = assert_merged_equals(expected, STATE_DICT, saved(tmp_path / "te.safetensors", kohya_names(tensors)))
    assert result.report.adapters[0].folded == 12


def trained_with(tensors: Tensors) -> tuple[Embeddings, Tensors]:
    """PEFT's forward with exactly these values."""
    from peft import set_peft_model_state_dict

    base = plain_model("hf", STATE_DICT)
    model = peft_wrap(base, peft_config=lora())
    set_peft_model_state_dict(model, {f"base_model.model.{key}": tensor.float() for key, tensor in tensors.items()})
    model.eval()
    return hf_embeddings(base), tensors


def test_kohya_text_projection(tmp_path: Path) -> None:
    expected, tensors = trained(lora(TEXT.format("fc1") + "|.*text_projection"))
    assert_merged_equals(expected, STATE_DICT, saved(tmp_path / "a.safetensors", kohya_names(tensors, "te2")))


@pytest.mark.parametrize("stored", [None, 0])
def test_kohya_alpha_that_is_missing_or_zero_is_the_rank(stored: float | None, tmp_path: Path) -> None:
    expected, tensors = trained(lora(lora_alpha=4))
    assert_merged_equals(expected, STATE_DICT, saved(tmp_path / "a.safetensors", kohya_names(tensors, alpha=stored)))


def test_kohya_ranks_and_alphas_of_their_own(tmp_path: Path) -> None:
    patterns = {"rank_pattern": {"fc1": 2, "layers.0.self_attn.q_proj": 7}, "alpha_pattern": {"fc1": 3}}
    expected, tensors = trained(lora(**patterns))
    named = kohya_names(tensors)
    for key in named:
        if key.endswith("fc1.alpha"):
            named[key] = torch.tensor(3.0)
    assert_merged_equals(expected, STATE_DICT, saved(tmp_path / "a.safetensors", named))


def test_kohya_dora(tmp_path: Path) -> None:
    expected, tensors = trained(lora(use_dora=True))
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
    settings: dict[str, Any] = {"r": 4, "alpha": 4, "target_modules": LORA, "init_weights": False}
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
    expected, tensors = trained(lora())
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
    expected, first = trained(lora())
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
    _, tensors = trained(lora(TEXT.format("fc1")))
    path = saved(tmp_path / "a.safetensors", {**kohya_names(tensors), extra: torch.ones(1)})
    with pytest.raises(AdapterError, match=words):
        read_adapter(path)


def test_kohya_half_a_pair(tmp_path: Path) -> None:
    _, tensors = trained(lora(TEXT.format("fc1")))
    kept = {key: tensor for key, tensor in kohya_names(tensors).items() if "layers_0_mlp_fc1.lora_up" not in key}
    with pytest.raises(AdapterError, match=r"layers\.0\.mlp\.fc1 .* has lora_down\.weight but no lora_up\.weight"):
        read_adapter(saved(tmp_path / "a.safetensors", kept))


# diffusers

DIFFUSERS_GRAMMARS: dict[str, tuple[tuple[str, str], ...]] = {
    "PEFT's": (),
    "lora_linear_layer": ((r"lora_A\.", "lora_linear_layer.down."), (r"lora_B\.", "lora_linear_layer.up.")),
    "to_q_lora": (
        (r"(q|k|v|out)_proj\.lora_A\.", r"to_\1_lora.down."),
        (r"(q|k|v|out)_proj\.lora_B\.", r"to_\1_lora.up."),
    ),
}


def diffusers_names(tensors: Tensors, grammar: str = "PEFT's", encoder: str = "text_encoder") -> Tensors:
    renamed = {}
    for key, tensor in tensors.items():
        for pattern, name in DIFFUSERS_GRAMMARS[grammar]:
            key = re.sub(pattern, name, key)
        renamed[f"{encoder}.{key}"] = tensor
    return renamed


@pytest.mark.parametrize("prefix", ["text_model.", ""])
@pytest.mark.parametrize("grammar", DIFFUSERS_GRAMMARS)
def test_diffusers_without_alpha(grammar: str, prefix: str, tmp_path: Path) -> None:
    expected, tensors = trained(lora(TEXT.format("q_proj|out_proj"), lora_alpha=4))
    tensors = {key.replace("text_model.", prefix): tensor for key, tensor in tensors.items()}
    others = {"unet.down_blocks.0.attn1.to_q.lora_A.weight": torch.ones(2, 2)}
    (tmp_path / "lora").mkdir()
    saved(tmp_path / "lora" / "pytorch_lora_weights.safetensors", {**diffusers_names(tensors, grammar), **others})
    assert_merged_equals(expected, STATE_DICT, tmp_path / "lora")
    first, second = read_adapter(tmp_path / "lora").notes
    assert "1 tensors of other models" in first
    assert "alpha is the rank" in second


def test_diffusers_alpha_by_key_or_by_option(tmp_path: Path) -> None:
    expected, tensors = trained(lora(TEXT.format("fc1")))
    named = diffusers_names(tensors)
    assert_merged_equals(expected, STATE_DICT, saved(tmp_path / "a.safetensors", named), alpha=8)
    alphas = {key.replace("lora_A.weight", "alpha"): torch.tensor(8.0) for key in named if "lora_A" in key}
    assert_merged_equals(expected, STATE_DICT, saved(tmp_path / "b.safetensors", {**named, **alphas}))


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"use_dora": True, "alpha_pattern": {"fc1": 3}}])
def test_diffusers_header(settings: dict[str, Any], tmp_path: Path) -> None:
    config = lora(TEXT.format("q_proj|fc1"), **settings)
    expected, tensors = trained(config)
    content = {name: sorted(value) if isinstance(value, set) else value for name, value in config.to_dict().items()}
    header = json.dumps({f"text_encoder.{name}": value for name, value in content.items()})
    path = saved(tmp_path / "a.safetensors", diffusers_names(tensors), lora_adapter_metadata=header)
    assert_merged_equals(expected, STATE_DICT, path)


def test_diffusers_header_that_is_broken(tmp_path: Path) -> None:
    _, tensors = trained(lora(TEXT.format("fc1")))
    path = saved(tmp_path / "a.safetensors", diffusers_names(tensors), lora_adapter_metadata="{")
    with pytest.raises(AdapterError, match="lora_adapter_metadata in the header .* not readable JSON"):
        read_adapter(path)


def test_diffusers_second_encoder(tmp_path: Path) -> None:
    expected, tensors = trained(lora())
    both = {**diffusers_names(tensors), **diffusers_names(tensors, encoder="text_encoder_2")}
    path = saved(tmp_path / "a.safetensors", both)
    with pytest.raises(AdapterError, match="diffusers:text_encoder, diffusers:text_encoder_2"):
        merge_file(STATE_DICT, path)
    adapter = read_adapter(path, format="diffusers:text_encoder_2", alpha=8)
    assert isinstance(adapter, Adapter)
    assert fit_adapter(adapter, base_weights("hf", STATE_DICT)) is adapter
    assert_merged_equals(expected, STATE_DICT, path, format="diffusers:text_encoder_2", alpha=8)


def test_tolerance_sees_a_scale_that_is_half_a_percent_off(tmp_path: Path) -> None:
    expected, tensors = trained(lora())
    path = saved(tmp_path / "a.safetensors", kohya_names(tensors, alpha=8 * 1.005))
    assert largest_difference(open_clip_embeddings(merge_file(STATE_DICT, path).state_dict), expected) > 2 * TOLERANCE
