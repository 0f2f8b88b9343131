"""The served graphs against open_clip's own forward, in PyTorch and as ONNX."""

from pathlib import Path

import numpy as np
import pytest

from tiny_clip import MODEL_CFG, PREPROCESS_CFG, tiny_state_dict, write_tiny_checkpoint
from tritonclip_export.checkpoints.load import load_checkpoint
from tritonclip_export.checkpoints.model import load_strictly, new_model
from tritonclip_export.checkpoints.tokenization import ClipBpe
from tritonclip_export.frameworks import open_clip, torch
from tritonclip_export.parity.comparison import OnnxTower
from tritonclip_export.parity.probes import make_probes
from tritonclip_export.spec_builder import build_spec
from tritonclip_export.towers.onnx_export import export_image_tower, export_text_tower
from tritonclip_export.towers.towers import SelfAttention, served_towers

RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}
# What a config can vary: activation, class token or average pooling, projections, ResNet.
VARIANTS = {
    "gelu": {},
    "quick_gelu": {"quick_gelu": True},
    "average_pooling": {"vision_cfg": {**MODEL_CFG["vision_cfg"], "pool_type": "avg"}},
    "layer_scale": {"vision_cfg": {**MODEL_CFG["vision_cfg"], "ls_init_value": 0.3}},
    "text_projection_bias": {"text_cfg": {**MODEL_CFG["text_cfg"], "proj_bias": True}},
    "resnet": {"embed_dim": 32, "vision_cfg": RESNET},
}


def build(variant: str) -> open_clip.CLIP:
    cfg = {**MODEL_CFG, **VARIANTS[variant]}
    model = new_model(cfg)
    load_strictly(model, tiny_state_dict(cfg), variant)
    return model


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory):
    checkpoint = load_checkpoint(str(write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))))
    return build_spec(checkpoint, checkpoint.state_dict)


@pytest.mark.parametrize("variant", VARIANTS)
def test_served_graphs_equal_open_clip(variant: str, spec, tmp_path: Path) -> None:
    probes = make_probes(PREPROCESS_CFG, ClipBpe(spec.text.context_length))
    model = build(variant)
    with torch.no_grad():
        images = model.encode_image(probes.pixel_values, normalize=True).numpy()
        texts = model.encode_text(probes.input_ids.long(), normalize=True).numpy()
    image_tower, text_tower = served_towers(model, {**MODEL_CFG, **VARIANTS[variant]}, spec.image.mean, spec.image.std)
    export_image_tower(image_tower, spec, tmp_path / "image.onnx")
    export_text_tower(text_tower, spec, tmp_path / "text.onnx")
    image_onnx, text_onnx = OnnxTower(tmp_path / "image.onnx"), OnnxTower(tmp_path / "text.onnx")
    for size in (1, 3, len(images)):
        assert np.abs(image_onnx(probes.pixels.numpy(), size) - images).max() < 1e-5
    for size in (1, 4):
        assert np.abs(text_onnx(probes.input_ids.numpy(), size) - texts).max() < 1e-5
    # Every length that still holds the end of text gives the full length's embedding.
    for row, (ids, expected) in enumerate(zip(probes.input_ids.numpy(), texts, strict=True)):
        end = int(ids.argmax()) + 1
        for length in {end, min(end + 5, len(ids))} - {1}:
            assert np.abs(text_onnx(ids[None, :length]) - expected).max() < 1e-5, (row, length)


def test_every_attention_of_a_vit_is_replaced(spec) -> None:
    model = build("gelu")
    served_towers(model, MODEL_CFG, spec.image.mean, spec.image.std)
    kinds = [type(module) for module in model.modules()]
    assert kinds.count(SelfAttention) == 4
    assert torch.nn.MultiheadAttention not in kinds


def test_embeddings_have_unit_length_and_depend_on_the_input(spec) -> None:
    image_tower, _ = served_towers(build("gelu"), MODEL_CFG, spec.image.mean, spec.image.std)
    pixels = torch.stack([torch.zeros(32, 32, 3), torch.full((32, 32, 3), 255.0)]).byte()
    with torch.no_grad():
        embeddings = image_tower(pixels)
    assert torch.allclose(embeddings.norm(dim=-1), torch.ones(2), atol=1e-6)
    assert (embeddings[0] - embeddings[1]).abs().max() > 1e-3
