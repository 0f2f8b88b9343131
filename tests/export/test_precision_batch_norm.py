"""Batch norms become part of the convolutions before them, and only there."""

from __future__ import annotations

from torch import nn

from tritonclip_export.frameworks import open_clip, torch
from tritonclip_export.towers.precision.batch_norm import fold_batch_norms


class Block(nn.Module):
    """Three norms: after a convolution, after a sum, and after a convolution that is needed elsewhere too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.alone = nn.BatchNorm2d(4)
        self.shared = nn.Conv2d(4, 4, 1)
        self.act = nn.ReLU()
        self.after_shared = nn.BatchNorm2d(4)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        hidden = self.alone(self.norm(self.conv(values)) + 1)
        shared = self.shared(hidden)
        return self.after_shared(shared) + self.act(shared)


def _trained(module: nn.Module) -> nn.Module:
    """With statistics and scales as training leaves them."""
    torch.manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor in (part.weight.data, part.running_var):
                tensor.uniform_(0.5, 2)
            for tensor in (part.bias.data, part.running_mean):
                tensor.normal_()
    return module.eval()


@torch.no_grad()
def test_only_what_stands_directly_after_a_convolution_is_folded() -> None:
    block = _trained(Block())
    example = torch.randn(2, 3, 5, 5)
    expected = block(example)
    assert fold_batch_norms(block, example[:1]) == ["norm"]
    assert isinstance(block.norm, nn.Identity)
    assert torch.allclose(block(example), expected, atol=1e-5)


@torch.no_grad()
def test_a_resnet_keeps_its_features_without_a_norm() -> None:
    visual = _trained(open_clip.create_model("RN50", text_cfg={"layers": 1}, force_image_size=64).visual)
    example = torch.randn(2, 3, 64, 64)
    expected = visual(example)
    fold_batch_norms(visual, example[:1])
    assert not [module for module in visual.modules() if isinstance(module, nn.BatchNorm2d)]
    assert torch.nn.functional.cosine_similarity(visual(example), expected).min() > 0.999999


@torch.no_grad()
def test_the_activation_of_a_norm_of_timm_stays() -> None:
    from timm.layers import BatchNormAct2d

    block = _trained(nn.Sequential(nn.Conv2d(3, 4, 1), BatchNormAct2d(4, act_layer=nn.ReLU)))
    example = torch.randn(2, 3, 5, 5)
    expected = block(example)
    assert fold_batch_norms(block, example[:1]) == ["1"]
    assert torch.allclose(block(example), expected, atol=1e-5)
    assert (expected >= 0).all()
