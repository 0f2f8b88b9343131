"""open_clip's and Hugging Face's names of the same CLIP, and their configs."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import CLIPConfig

from lora_models import (
    CONTEXT,
    MODEL_CFG,
    VOCABULARY,
    hf_embeddings,
    largest_difference,
    open_clip_embeddings,
    plain_model,
    random_state_dict,
)
from tritonclip_export.checkpoints.hugging_face.clip import build_hf_clip, hf_config, open_clip_model_cfg
from tritonclip_export.checkpoints.key_mapping import from_hf, of_hf, of_native, to_hf
from tritonclip_export.errors import CheckpointError
from tritonclip_export.frameworks import open_clip, torch

STATE_DICT = random_state_dict()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_round_trip_is_exact(dtype: torch.dtype) -> None:
    given = {name: tensor.to(dtype) for name, tensor in STATE_DICT.items()}
    back = from_hf(to_hf(given))
    assert set(back) == set(given)
    for name, tensor in given.items():
        assert back[name].dtype == dtype
        assert torch.equal(back[name], tensor), name


def test_round_trip_from_hugging_face_is_exact() -> None:
    given = plain_model("hf", STATE_DICT).state_dict()
    back = to_hf(from_hf(given))
    assert set(back) == set(given)
    assert all(torch.equal(back[name], tensor) for name, tensor in given.items())


def test_both_libraries_compute_the_same() -> None:
    difference = largest_difference(hf_embeddings(plain_model("hf", STATE_DICT)), open_clip_embeddings(STATE_DICT))
    assert difference <= 1e-6


def test_converted_tensors_share_no_memory_among_themselves() -> None:
    pointers = [tensor.untyped_storage().data_ptr() for tensor in to_hf(STATE_DICT).values()]
    assert len(set(pointers)) == len(pointers)


def test_text_prefix_of_custom_text_clip_is_accepted() -> None:
    model = open_clip.CustomTextCLIP(**MODEL_CFG)
    custom = model.state_dict()
    assert any(name.startswith("text.") for name in custom)
    plain = {name.removeprefix("text."): tensor for name, tensor in custom.items()}
    one, other = to_hf(custom), to_hf(plain)
    assert set(one) == set(other) == set(plain_model("hf", STATE_DICT).state_dict())


def test_position_ids_of_old_files_are_no_weights() -> None:
    given = {**to_hf(STATE_DICT), "text_model.embeddings.position_ids": torch.arange(CONTEXT)}
    assert set(from_hf(given)) == set(STATE_DICT)


def test_unknown_names_are_named() -> None:
    with pytest.raises(CheckpointError, match=r"1 weights are not part of open_clip.*visual\.trunk\.norm"):
        to_hf({**STATE_DICT, "visual.trunk.norm": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"not part of Hugging Face.*vision_model\.head\.probe"):
        from_hf({**to_hf(STATE_DICT), "vision_model.head.probe": torch.ones(1)})


def test_incomplete_attention_is_named() -> None:
    given = to_hf(STATE_DICT)
    del given["vision_model.encoder.layers.1.self_attn.k_proj.bias"]
    with pytest.raises(CheckpointError, match=r"layers\.1\.self_attn\.k_proj\.bias is missing"):
        from_hf(given)


@pytest.mark.parametrize(
    "name", ["transformer.resblocks.0.attn.k_norm.weight", "transformer.resblocks.0.ln_1.scale", "visual.layer1"]
)
def test_names_outside_the_plain_towers_have_no_counterpart(name: str) -> None:
    assert of_native(name) is None


@pytest.mark.parametrize(
    "name", ["text_model.encoder.layers.0.self_attn.q_norm.weight", "vision_model.encoder.layers.x.mlp.fc1.bias"]
)
def test_hf_names_outside_the_plain_towers_have_no_counterpart(name: str) -> None:
    assert of_hf(name) is None


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-32-quickgelu", "ViT-L-14-336", "ViT-H-14", "ViT-bigG-14"])
def test_configs_go_to_hugging_face_and_back(name: str) -> None:
    given = open_clip.get_model_config(name)
    config = hf_config(given)
    back = open_clip_model_cfg(config)
    assert hf_config(back).to_dict() == config.to_dict()
    for tower, kind in (("vision_cfg", open_clip.CLIPVisionCfg), ("text_cfg", open_clip.CLIPTextCfg)):
        # 4.9231 and 8192 / 1664 are the same ratio: the width of the MLP is compared above.
        ratio = back[tower]["mlp_ratio"]
        assert kind(**back[tower]) == kind(**{**given[tower], "mlp_ratio": ratio})
    assert back["quick_gelu"] == given.get("quick_gelu", False)
    assert back["embed_dim"] == given["embed_dim"]


def text_ids() -> torch.Tensor:
    """Two texts whose highest id is not their first end-of-text id 7."""
    ids = torch.zeros(2, CONTEXT, dtype=torch.int64)
    ids[0, :5] = torch.tensor([1, VOCABULARY - 1, 7, 3, 7])
    ids[1, :4] = torch.tensor([1, 9, VOCABULARY - 1, 7])
    return ids


@pytest.mark.parametrize("eos_id", [2, VOCABULARY - 1, 7])
def test_pooling_position_is_that_of_hugging_face(eos_id: int) -> None:
    config = hf_config(MODEL_CFG)
    text_config: Any = config.text_config
    text_config.eos_token_id = eos_id
    cfg = open_clip_model_cfg(config)
    # Not `new_model`: the exporter serves argmax pooling only.
    model = open_clip.CLIP(**cfg).eval()
    model.load_state_dict(STATE_DICT)
    hf = build_hf_clip(cfg, STATE_DICT)
    text_model: Any = hf.text_model
    text_model.eos_token_id = eos_id
    with torch.no_grad():
        theirs = hf.text_projection(hf.text_model(input_ids=text_ids()).pooler_output)
        ours = model.encode_text(text_ids())
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(
    ("part", "name", "value", "words"),
    [
        ("vision_config", "hidden_act", "gelu_pytorch_tanh", "allowed: gelu or quick_gelu"),
        ("text_config", "hidden_act", "relu", r"text_config\.hidden_act is 'relu'"),
        ("vision_config", "hidden_act", "gelu", "the same in both towers"),
        ("text_config", "layer_norm_eps", 1e-6, "allowed: 1e-05"),
        ("vision_config", "num_attention_heads", 3, "a divisor of 64"),
        ("vision_config", "num_channels", 4, "allowed: 3"),
        ("vision_config", "image_size", (16, 24), "a square"),
        ("text_config", "eos_token_id", [5, 6], "one id"),
    ],
)
def test_what_open_clip_cannot_express_is_refused(part: str, name: str, value: Any, words: str) -> None:
    config = hf_config(MODEL_CFG)
    object.__setattr__(getattr(config, part), name, value)
    with pytest.raises(CheckpointError, match=words):
        open_clip_model_cfg(config)


@pytest.mark.parametrize(
    ("part", "settings", "words"),
    [
        ("vision_cfg", {"layers": (1, 1, 1, 1)}, "ResNet"),
        ("vision_cfg", {"timm_model_name": "vit_base"}, r"vision_cfg\.timm_model_name"),
        ("vision_cfg", {"pool_type": "avg"}, r"vision_cfg\.pool_type is 'avg'; allowed: 'tok'"),
        ("vision_cfg", {"no_ln_pre": True}, "no_ln_pre"),
        ("vision_cfg", {"image_size": (16, 24)}, "a square"),
        ("text_cfg", {"no_causal_mask": True}, "no_causal_mask"),
        ("text_cfg", {"pool_type": "last"}, "'argmax'"),
        ("text_cfg", {"pool_type": "eos", "eos_id": 2}, "eos_id other than 2"),
        ("text_cfg", {"norm_kwargs": {"eps": 1e-6}}, "norm_kwargs"),
        ("text_cfg", {"unheard_of": 1}, "unheard_of"),
    ],
)
def test_what_hugging_face_cannot_express_is_refused(part: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        hf_config({**MODEL_CFG, part: {**MODEL_CFG[part], **settings}})


@pytest.mark.parametrize(("width", "intermediate"), [(1664, 8192), (1408, 6144), (770, 3079), (49, 100)])
def test_odd_mlp_widths_survive(width: int, intermediate: int) -> None:
    config: Any = CLIPConfig(
        vision_config={"hidden_size": width, "intermediate_size": intermediate, "num_attention_heads": 1}
    )
    back: Any = hf_config(open_clip_model_cfg(config))
    assert back.vision_config.intermediate_size == intermediate


def test_missing_weight_is_named() -> None:
    given = {name: tensor for name, tensor in STATE_DICT.items() if name != "visual.ln_post.bias"}
    with pytest.raises(CheckpointError, match=r"post_layernorm\.bias"):
        build_hf_clip(MODEL_CFG, given)
