"""Measure every model and write models.json: `python -m tritonclip_export.registry.measure`.

Needs open_clip and transformers, two minutes, and neither weights nor a network. To be run again for another version
of open_clip.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tritonclip_export.checkpoints.hugging_face import towers as hf_towers
from tritonclip_export.frameworks import open_clip, torch
from tritonclip_export.registry.catalog import FILE, Model, Weights
from tritonclip_export.registry.meta import EXTRA_MODELS, chinese_clip_model, flops, open_clip_model, siglip2_model
from tritonclip_export.towers.towers import PatchTower

_CONTEXT_LENGTH = 77


def main(argv: Sequence[str] | None = None) -> int:
    """Write the file, one model a line."""
    parser = argparse.ArgumentParser(prog="python -m tritonclip_export.registry.measure", description=main.__doc__)
    parser.add_argument("--out", type=Path, default=FILE, help="default: %(default)s")
    out: Path = parser.parse_args(argv).out
    lines = ",\n".join(json.dumps(model.to_json(), separators=(",", ":")) for model in measure_all())
    version = json.dumps(open_clip.__version__)
    out.write_text(f'{{"open_clip": {version}, "models": [\n{lines}\n]}}\n', "utf-8")
    print(f"{out}: {lines.count(chr(10)) + 1} models of open_clip {open_clip.__version__} and extra_models.json")
    return 0


def measure_all() -> Iterator[Model]:
    """Every config of open_clip, then what it lacks."""
    for config in open_clip.list_models():
        yield measure(config)
    for entry in json.loads(EXTRA_MODELS.read_text("utf-8")):
        yield measure_extra(entry)


def measure(config: str) -> Model:
    """One config of open_clip."""
    model_cfg = open_clip.get_model_config(config)
    return _of_open_clip(config, model_cfg, open_clip_model(config), released_weights(config))


def measure_extra(entry: dict[str, Any]) -> Model:
    """One entry of extra_models.json: a config of open_clip with another context, or a model of transformers."""
    weights = tuple(map(Weights.from_json, entry["weights"]))
    if "open_clip" in entry:
        context_length = entry["context_length"]
        model_cfg = open_clip.get_model_config(entry["open_clip"])
        model_cfg["text_cfg"]["context_length"] = context_length
        return _of_open_clip(entry["config"], model_cfg, open_clip_model(entry["open_clip"], context_length), weights)
    is_siglip2 = entry["hf_config"]["model_type"] == "siglip2"
    return (_of_siglip2 if is_siglip2 else _of_chinese_clip)(entry, weights)


def released_weights(config: str) -> tuple[Weights, ...]:
    """The weights that open_clip lists for a config, with their preprocessing and activation."""
    tags = open_clip.list_pretrained_tags_by_model(config)
    return tuple(_weights(tag, open_clip.get_pretrained_cfg(config, tag)) for tag in tags)


def _weights(tag: str, cfg: dict[str, Any]) -> Weights:
    quick_gelu = bool(cfg.get("quick_gelu", False))
    return Weights(tag, tuple(cfg["mean"]), tuple(cfg["std"]), cfg["interpolation"], cfg["resize_mode"], quick_gelu)


def _of_open_clip(config: str, model_cfg: dict[str, Any], model: Any, weights: tuple[Weights, ...]) -> Model:
    text_cfg = model_cfg["text_cfg"]
    image_size = model_cfg["vision_cfg"]["image_size"]
    context_length = text_cfg.get("context_length", _CONTEXT_LENGTH)
    text_parameters = _parameters(model.text) if hasattr(model, "text") else _parameters_of_clip_text(model)
    return Model(
        config=config,
        library="open_clip",
        image_size=image_size,
        context_length=context_length,
        embed_dim=model_cfg["embed_dim"],
        tokenizer=text_cfg.get("hf_tokenizer_name", "clip"),
        scoring="sigmoid" if model_cfg.get("init_logit_bias") is not None else "softmax",
        quick_gelu=bool(model_cfg.get("quick_gelu", False)),
        image_parameters=_parameters(model.visual),
        text_parameters=text_parameters,
        image_flops=flops(model.encode_image, _image(image_size)),
        text_flops=flops(model.encode_text, _text(context_length)),
        weights=weights,
    )


def _of_chinese_clip(entry: dict[str, Any], weights: tuple[Weights, ...]) -> Model:
    hf_config, context_length = entry["hf_config"], entry["context_length"]
    model: Any = chinese_clip_model(hf_config)
    image_size = hf_config["vision_config"]["image_size"]
    image = _image(image_size)
    mask = torch.ones(1, context_length, dtype=torch.long, device="meta")
    return Model(
        config=entry["config"],
        library="transformers",
        image_size=image_size,
        context_length=context_length,
        embed_dim=hf_config["projection_dim"],
        tokenizer=entry["tokenizer"],
        scoring="softmax",
        quick_gelu=model.config.vision_config.hidden_act == "quick_gelu",
        image_parameters=_parameters(model.vision_model) + _parameters(model.visual_projection),
        text_parameters=_parameters(model.text_model) + _parameters(model.text_projection),
        image_flops=flops(lambda pixels: model.get_image_features(pixel_values=pixels), image),
        text_flops=flops(
            lambda ids: model.get_text_features(input_ids=ids, attention_mask=mask), _text(context_length)
        ),
        weights=weights,
    )


def _of_siglip2(entry: dict[str, Any], weights: tuple[Weights, ...]) -> Model:
    model_cfg = hf_towers.model_cfg(entry["hf_config"])
    vision, most = model_cfg["vision_cfg"], entry["max_num_patches"]
    model: Any = siglip2_model(entry["hf_config"])
    parameters = (_parameters(model.vision_model), _parameters(model.text_model))
    rows = torch.empty(1, 1 + most, 3 * vision["patch_size"] ** 2, dtype=torch.uint8, device="meta")
    with torch.device("meta"):
        tower = PatchTower(model, weights[0].mean, weights[0].std, most)
    return Model(
        config=entry["config"],
        library="transformers",
        image_size=vision["image_size"],
        context_length=entry["context_length"],
        embed_dim=model_cfg["embed_dim"],
        tokenizer=entry["tokenizer"],
        scoring="sigmoid",
        quick_gelu=False,
        image_parameters=parameters[0],
        text_parameters=parameters[1],
        image_flops=flops(tower, rows),
        text_flops=flops(model.encode_text, _text(entry["context_length"])),
        weights=weights,
    )


def _parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _parameters_of_clip_text(model: torch.nn.Module) -> int:
    """open_clip's CLIP keeps its text tower at the top level, beside the scalars of the loss."""
    return sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if not name.startswith(("visual.", "logit_scale", "logit_bias"))
    )


def _image(size: int) -> torch.Tensor:
    return torch.empty(1, 3, size, size, device="meta")


def _text(context_length: int) -> torch.Tensor:
    return torch.empty(1, context_length, dtype=torch.long, device="meta")


if __name__ == "__main__":
    raise SystemExit(main())
