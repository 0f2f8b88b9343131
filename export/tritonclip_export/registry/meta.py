"""Every model of the registry on torch's meta device: shapes without weights, so the largest takes no memory."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tritonclip_export.frameworks import open_clip, torch

EXTRA_MODELS = Path(__file__).with_name("extra_models.json")
HF_TEXT_CONFIGS = Path(__file__).with_name("hf_text_configs.json")


def open_clip_model(config: str, context_length: int | None = None) -> torch.nn.Module:
    """A config of open_clip's, in eval mode; nothing is fetched, whatever its towers are.

    Args:
        config: one of open_clip's names.
        context_length: tokens of a text, where it is not what the config says.
    """
    text_cfg = open_clip.get_model_config(config)["text_cfg"]
    with tempfile.TemporaryDirectory() as folder, torch.device("meta"), _quiet():
        overrides: dict[str, Any] = {}
        if "hf_model_name" in text_cfg:
            _write_hf_config(Path(folder), text_cfg["hf_model_name"])
            overrides["text_cfg"] = {**text_cfg, "hf_model_name": folder, "hf_model_pretrained": False}
        model = open_clip.create_model(
            config, device="meta", pretrained_text=False, force_context_length=context_length, **overrides
        )
    return _frozen(model)


def chinese_clip_model(hf_config: dict[str, Any]) -> torch.nn.Module:
    """Hugging Face's ChineseCLIPModel of that config.json, in eval mode."""
    from transformers import ChineseCLIPConfig, ChineseCLIPModel

    with torch.device("meta"):
        model = ChineseCLIPModel(ChineseCLIPConfig.from_dict({**hf_config, "attn_implementation": "eager"}))
    return _frozen(model)


def siglip2_model(hf_config: dict[str, Any]) -> torch.nn.Module:
    """`hugging_face.towers.Siglip2` of that config.json, in eval mode."""
    from tritonclip_export.checkpoints.hugging_face.towers import new_hf_model

    with torch.device("meta"):
        return _frozen(new_hf_model({**hf_config, "attn_implementation": "eager"}))


def flops(forward: Any, inputs: torch.Tensor) -> int:
    """Floating-point operations of `forward(inputs)` on the meta device; a multiply-add is two.

    Counted are matrix products, convolutions and attention (torch.utils.flop_counter); what is element-wise is not.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    # transformers asks masks for their values, except of fake tensors; open_clip indexes with a mask, hence symbolic.
    fake = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv(), static_shapes=True)
    with torch.no_grad(), torch.device("meta"), _attention_in_parts(), fake, counter:
        forward(fake.from_tensor(inputs))
    return int(counter.get_total_flops())


def _frozen(model: torch.nn.Module) -> torch.nn.Module:
    return model.eval().requires_grad_(False)


def _write_hf_config(folder: Path, name: str) -> None:
    config = json.loads(HF_TEXT_CONFIGS.read_text("utf-8"))[name]
    # Masks for the fused attentions depend on values, which the meta device has none of.
    (folder / "config.json").write_text(json.dumps({**config, "attn_implementation": "eager"}), "utf-8")


@contextmanager
def _attention_in_parts() -> Iterator[None]:
    """nn.MultiheadAttention without its fused kernel, of which the counter knows nothing."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """open_clip warns of every model that it builds without weights."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
