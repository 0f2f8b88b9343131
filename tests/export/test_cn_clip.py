"""Chinese-CLIP in cn_clip's own format, against what cn_clip computed (tests/golden/make_cn_clip.py)."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tritonclip_export.checkpoints.extra_architectures import extra_architecture, names
from tritonclip_export.checkpoints.hugging_face.towers import model_cfg
from tritonclip_export.checkpoints.load import load_checkpoint
from tritonclip_export.checkpoints.model import load_strictly, new_model
from tritonclip_export.checkpoints.normalize_weights import normalize_weights
from tritonclip_export.checkpoints.sources import from_architecture
from tritonclip_export.checkpoints.weights import unwrap
from tritonclip_export.errors import CheckpointError
from tritonclip_export.frameworks import torch

GOLDEN = Path(__file__).parents[1] / "golden" / "cn_clip.safetensors"
INPUTS = ("pixels", "ids", "real_ids", "images", "texts")
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIG = {
    "model_type": "chinese_clip",
    "projection_dim": 16,
    "vision_config": {**SIZES, "intermediate_size": 128, "patch_size": 8, "image_size": 32},
    "text_config": {
        **SIZES,
        "intermediate_size": 64,
        "vocab_size": 120,
        "max_position_embeddings": 64,
        "type_vocab_size": 2,
        "pad_token_id": 0,
    },
}


def golden() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    tensors = load_file(GOLDEN)
    inputs = {name: tensors.pop(name) for name in INPUTS}
    return unwrap(tensors, GOLDEN), inputs


def test_both_towers_are_those_of_cn_clip() -> None:
    weights, expected = golden()
    cfg = model_cfg(CONFIG)
    model = new_model(cfg)
    load_strictly(model, normalize_weights(weights, cfg), "cn_clip")
    with torch.no_grad():
        images, texts = model.encode_image(expected["pixels"]), model.encode_text(expected["ids"])
    assert (images - expected["images"]).abs().max() < 2e-5
    assert (texts - expected["texts"]).abs().max() < 2e-5


def test_a_bert_without_its_projection_is_refused() -> None:
    weights, _ = golden()
    del weights["text_projection"]
    with pytest.raises(CheckpointError, match="no text_projection"):
        normalize_weights(weights, model_cfg(CONFIG))


def test_the_names_are_those_of_the_registry() -> None:
    assert {"Chinese-CLIP-ViT-B-16", "Long-CLIP-B-16"} <= set(names())
    found = extra_architecture("Long-CLIP-B-16")
    assert found is not None
    cfg, preprocess = found
    assert (cfg["text_cfg"]["context_length"], cfg["quick_gelu"], preprocess["resize_mode"]) == (248, True, "shortest")
    assert extra_architecture("ViT-B-32") is None


def test_a_file_needs_the_vocabulary_and_says_so(tmp_path: Path) -> None:
    weights, _ = golden()
    save_file(weights, tmp_path / "clip_cn.safetensors")
    with pytest.raises(CheckpointError, match=r"vocab\.txt: --tokenizer DIR"):
        load_checkpoint("Chinese-CLIP-ViT-B-16", weights=tmp_path / "clip_cn.safetensors")


def test_a_bare_vocabulary_is_a_bert_tokenizer(tmp_path: Path) -> None:
    weights, _ = golden()
    save_file(weights, tmp_path / "clip_cn.safetensors")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "一", "只", "猫", "cat", "a"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    # Below `load_checkpoint`, because the golden weights are smaller than that architecture's.
    file = tmp_path / "clip_cn.safetensors"
    checkpoint = from_architecture("Chinese-CLIP-ViT-B-16", {}, file, None, None, None, tmp_path)
    ids = checkpoint.tokenization(["一只猫 a CAT"])[0]
    assert ids[:8].tolist() == [2, 5, 6, 7, 9, 8, 3, 0]
    assert len(ids) == 52
    assert checkpoint.preprocess_cfg["resize_mode"] == "squash"


@pytest.mark.parametrize("architecture", ["Long-CLIP-B-16", "Chinese-CLIP-ViT-B-16"])
@pytest.mark.parametrize(
    "options",
    [
        {"weights": Path("longclip-B.pt"), "like": "openai"},
        {"random_weights": 0, "like": "openai"},
        {"random_weights": 0, "like": ""},
        {"pretrained": "openai"},
    ],
)
def test_a_tag_of_a_name_without_tags_is_refused(architecture: str, options: dict[str, Any]) -> None:
    tag = options.get("like", "openai")
    with pytest.raises(CheckpointError, match=f"{architecture} has no tags, '{tag}' was given; leave the option out"):
        load_checkpoint(architecture, **options)
