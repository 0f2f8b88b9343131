"""Writes a checkpoint of any CLIP family, as its users have it, shrunk and with random weights."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

import local_tokenizers
from tritonclip_export.checkpoints.model import new_model
from tritonclip_export.frameworks import open_clip, torch

SHRUNK_NATIVE = {"layers": 2, "width": 64, "head_width": 32}
SHRUNK_TEXT = {"layers": 2, "width": 64, "heads": 2}
EMBED_DIM = 48


def shrunk_tower(name: str, **sizes: Any) -> str:
    """The name under which timm now builds its model `name` in other sizes, of the same parts."""
    import timm

    # One name for one set of sizes: timm keeps names for as long as the process runs.
    local = re.sub(r"\W+", "_", f"{name}_{sizes}")
    if not timm.is_model(local):

        def entrypoint(pretrained: bool = False, **options: Any) -> torch.nn.Module:
            return timm.model_entrypoint(name)(pretrained=pretrained, **{**sizes, **options})

        entrypoint.__name__ = local
        timm.models.register_model(entrypoint)
    return local


def perturbed(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The model's random weights, with biases and scales that are neither 0 nor 1, so that a forgotten one shows."""
    weights = {
        name: tensor + 0.05 * torch.randn_like(tensor) if tensor.ndim == 1 and tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    return {
        name: tensor.abs() if name.endswith("running_var") else tensor.contiguous().clone()
        for name, tensor in weights.items()
    }


def open_clip_directory(
    folder: Path,
    config: str,
    tag: str | None,
    tokenizer: str | None = None,
    *,
    hf_text: str | None = None,
    tower: dict[str, Any] | None = None,
    **text: Any,
) -> dict[str, torch.Tensor]:
    """Write `config`, shrunk, with the preprocessing of `tag`; returns its weights.

    Args:
        tokenizer: one of `local_tokenizers.KINDS`; None: CLIP's.
        hf_text: the model type of a text tower of Hugging Face.
        tower: the sizes of an image tower of timm; None: its own.
        text: settings of a text tower of open_clip.
    """
    folder.mkdir(parents=True, exist_ok=True)
    preprocess_cfg = open_clip.get_pretrained_cfg(config, tag) if tag else {}
    vocabulary = local_tokenizers.KINDS[tokenizer](folder) if tokenizer else None
    if hf_text:
        (folder / "config.json").write_text(json.dumps(hf_text_config(hf_text, vocabulary)))
    else:
        text.update({"vocab_size": vocabulary} if vocabulary else {})
    model_cfg = shrunk_config(config, tower, **text)
    model_cfg["quick_gelu"] = bool(model_cfg.get("quick_gelu") or preprocess_cfg.get("quick_gelu"))
    kept = ("mean", "std", "interpolation", "resize_mode")
    written = {"model_cfg": model_cfg, "preprocess_cfg": {k: preprocess_cfg[k] for k in kept if k in preprocess_cfg}}
    (folder / "open_clip_config.json").write_text(json.dumps(written))
    torch.manual_seed(0)
    buildable = deepcopy(model_cfg)
    if hf_text:
        buildable["text_cfg"]["hf_model_name"] = str(folder)
    weights = perturbed(new_model(buildable))
    save_file(weights, folder / "open_clip_model.safetensors")
    return weights


def shrunk_config(config: str, tower: dict[str, Any] | None = None, **text: Any) -> dict[str, Any]:
    """open_clip's `config` in small; see `open_clip_directory`."""
    model_cfg: dict[str, Any] = deepcopy(open_clip.get_model_config(config))
    vision = model_cfg["vision_cfg"]
    if tower:
        vision["timm_model_name"] = shrunk_tower(vision["timm_model_name"], **tower)
        # Without a projection, the embedding has the width of the tower.
        model_cfg["embed_dim"] = tower["embed_dim"] if vision["timm_proj"] == "none" else EMBED_DIM
    elif "timm_model_name" not in vision and not isinstance(vision["layers"], list):
        vision.update(SHRUNK_NATIVE)
        model_cfg["embed_dim"] = EMBED_DIM
    if "multimodal_cfg" in model_cfg:
        model_cfg["multimodal_cfg"].update(SHRUNK_TEXT)
    if "hf_model_name" not in model_cfg["text_cfg"]:
        model_cfg["text_cfg"].update(SHRUNK_TEXT, **text)
    return model_cfg


def hf_text_config(kind: str, vocabulary: int | None) -> dict[str, Any]:
    """A two-layer text tower of Hugging Face; an encoder's decoder, which open_clip drops, has one."""
    common = {"model_type": kind, "vocab_size": vocabulary, "pad_token_id": 1, "max_position_embeddings": 130}
    if kind == "mt5":
        sizes = {"d_model": 64, "d_kv": 32, "d_ff": 128, "num_layers": 2, "num_decoder_layers": 1, "num_heads": 2}
        return {**common, **sizes, "pad_token_id": 0, "eos_token_id": 1, "feed_forward_proj": "gated-gelu"}
    if kind == "m2m_100":
        layers = {"encoder_layers": 2, "decoder_layers": 1, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128}
        heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
        return {**common, **layers, **heads, "d_model": 64, "activation_function": "relu", "scale_embedding": True}
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    return {**common, **sizes}


def long_clip(folder: Path) -> None:
    """OpenAI's names, 248 positions in two tables, of which each is half used."""
    weights = open_clip_directory(folder, "ViT-B-16-quickgelu", "openai", context_length=248)
    weights["positional_embedding_res"] = torch.randn_like(weights["positional_embedding"]) * 0.05
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["context_length"] = 77
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(weights, folder / "open_clip_model.safetensors")


HF_SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}


def hf_clip(folder: Path) -> None:
    """A `CLIPModel` directory."""
    from transformers import CLIPConfig, CLIPModel

    text = {**HF_SIZES, "vocab_size": 49408, "eos_token_id": 49407, "bos_token_id": 49406, "pad_token_id": 0}
    config = CLIPConfig(text_config=text, vision_config=HF_SIZES, projection_dim=EMBED_DIM)
    crop = {"size": {"shortest_edge": 224}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}}
    _save_hf(folder, CLIPModel(config), "CLIPImageProcessor", open_clip.OPENAI_DATASET_MEAN, crop)


def hf_siglip(folder: Path) -> None:
    """A `SiglipModel` directory."""
    from transformers import SiglipConfig, SiglipModel

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = local_tokenizers.t5(folder)
    local_tokenizers.set_class(folder, "SiglipTokenizer")
    text = {**HF_SIZES, "vocab_size": vocabulary, "max_position_embeddings": 64, "projection_size": 64}
    ids = {"pad_token_id": 1, "eos_token_id": 1, "bos_token_id": None}
    config = SiglipConfig(text_config={**text, **ids}, vision_config={**HF_SIZES, "image_size": 224, "patch_size": 16})
    squash = {"size": {"height": 224, "width": 224}}
    _save_hf(folder, SiglipModel(config), "SiglipImageProcessor", (0.5, 0.5, 0.5), squash)


def chinese_clip(folder: Path) -> None:
    """A `ChineseCLIPModel` directory."""
    from transformers import ChineseCLIPConfig, ChineseCLIPModel

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = local_tokenizers.bert(folder)
    text = {**HF_SIZES, "vocab_size": vocabulary, "pad_token_id": 0, "max_position_embeddings": 512}
    vision = {**HF_SIZES, "image_size": 224, "patch_size": 16, "hidden_act": "quick_gelu"}
    config = ChineseCLIPConfig(text_config=text, vision_config=vision, projection_dim=EMBED_DIM)
    squash = {"size": {"height": 224, "width": 224}, "do_center_crop": False}
    model = ChineseCLIPModel(config)
    _save_hf(folder, model, "ChineseCLIPImageProcessor", open_clip.OPENAI_DATASET_MEAN, squash)


def _save_hf(folder: Path, model: Any, processor: str, mean: tuple[float, ...], geometry: dict[str, Any]) -> None:
    torch.manual_seed(0)
    weights = perturbed(model)
    model.save_pretrained(folder, state_dict=weights)
    std = open_clip.OPENAI_DATASET_STD if mean == open_clip.OPENAI_DATASET_MEAN else mean
    settings = {"image_processor_type": processor, "resample": 3, "image_mean": list(mean), "image_std": list(std)}
    (folder / "preprocessor_config.json").write_text(json.dumps({**settings, **geometry}))
