"""The contrastive training that both the base model and the adapter go through."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.nn import functional

from demo.captions import TRAINED_PAIRS, Caption, caption_of, random_scene
from demo.drawing import PALETTE, POSITIONS, SHAPES, SIZES, Scene, draw_with_mask
from demo.model import IMAGE_SIZE, encode_text, token_ids
from tritonclip_export.frameworks import torch

_FIELDS: dict[str, Iterable[str]] = {"shape": SHAPES, "color": PALETTE, "size": SIZES, "position": POSITIONS}
_UNNAMED = -1
_MAX_LOGIT_SCALE = math.log(100)


@dataclass(frozen=True)
class Recipe:
    """How one training runs. `shifted_share` is the share of images that are pencil drawings."""

    steps: int
    batch: int
    learning_rate: float
    weight_decay: float
    seed: int
    shifted_share: float = 0.0
    mask_weight: float = 3.0
    captions_per_image: int = 2
    whole_caption_share: float = 0.5
    warmup_share: float = 0.05


@dataclass(frozen=True)
class Batch:
    """pixels float32 [N, 3, H, W] in -1..1; masks float32 [N, H, W], 1 inside the shape."""

    scenes: Sequence[Scene]
    captions: Sequence[Caption]
    pixels: Any
    masks: Any


class MaskHead(torch.nn.Module):
    """Says for every pixel whether it lies in the shape, from the patch tokens of an early vision block.

    A helper of the training only: told where the shape is, the tower learns shapes many times sooner.
    """

    def __init__(self, visual: Any, block: int = 1) -> None:
        super().__init__()
        self.patch = visual.patch_size[0]
        self.linear = torch.nn.Linear(visual.conv1.out_channels, self.patch**2)
        self._tokens: Any = None
        visual.transformer.resblocks[block].register_forward_hook(self._keep)

    def _keep(self, _module: Any, _inputs: Any, output: Any) -> None:
        self._tokens = output[:, 1:]

    def loss(self, masks: Any) -> Any:
        """Cross-entropy per pixel of the images that went through the tower last."""
        cells = masks.unfold(1, self.patch, self.patch).unfold(2, self.patch, self.patch)
        wanted = cells.reshape(len(masks), -1, self.patch**2)
        return functional.binary_cross_entropy_with_logits(self.linear(self._tokens), wanted)


def draw_batch(recipe: Recipe, rng: np.random.Generator) -> Batch:
    """Fresh images of the trained pairs, and `captions_per_image` true captions for each, in order."""
    scenes = [random_scene(TRAINED_PAIRS, rng) for _ in range(recipe.batch)]
    domains = ["shifted" if rng.random() < recipe.shifted_share else "original" for _ in scenes]
    drawn = [
        draw_with_mask(scene, domain, rng, (IMAGE_SIZE, IMAGE_SIZE))
        for scene, domain in zip(scenes, domains, strict=True)
    ]
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image, _ in drawn]))
    masks = torch.from_numpy(np.stack([np.asarray(mask) for _, mask in drawn]))
    captions = [
        caption_of(scene, rng, whole=rng.random() < recipe.whole_caption_share)
        for scene in scenes
        for _ in range(recipe.captions_per_image)
    ]
    return Batch(scenes, captions, pixels.permute(0, 3, 1, 2).float() / 127.5 - 1, masks.float() / 255)


def _codes(described: Iterable[Scene | Caption]) -> Any:
    """int64 [N, 4]: the index of each attribute's value, -1 where a caption does not name it."""
    order = {field: list(values) for field, values in _FIELDS.items()}
    return torch.tensor(
        [
            [values.index(name) if (name := getattr(one, field)) else _UNNAMED for field, values in order.items()]
            for one in described
        ]
    )


def contrastive_loss(model: Any, batch: Batch) -> Any:
    """CLIP's loss, in which a caption that is true of an image is never that image's negative."""
    unique = {caption.text: caption for caption in batch.captions}
    column = {text: index for index, text in enumerate(unique)}
    named, facts = _codes(unique.values()), _codes(batch.scenes)
    true = ((named[None] == facts[:, None]) | (named[None] == _UNNAMED)).all(dim=-1)
    images = functional.normalize(model.encode_image(batch.pixels), dim=-1)
    logits = model.logit_scale.exp() * images @ encode_text(model, token_ids(list(unique))).T
    own = torch.tensor([column[caption.text] for caption in batch.captions])
    image = torch.arange(len(batch.scenes)).repeat_interleave(len(own) // len(batch.scenes))
    wrong, right = logits.masked_fill(true, -math.inf), logits[image, own]
    to_texts = functional.softplus(wrong.logsumexp(dim=1)[image] - right).mean()
    to_images = functional.softplus(wrong.logsumexp(dim=0)[own] - right).mean()
    return (to_texts + to_images) / 2


def _optimizer(modules: Sequence[Any], recipe: Recipe) -> Any:
    trained = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [one for one in trained if one.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [one for one in trained if one.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98))


def _rate(step: int, recipe: Recipe) -> float:
    """The share of the learning rate at a step: a linear rise, then half a cosine down to 1 %."""
    rise = max(1, round(recipe.steps * recipe.warmup_share))
    fall = max(0, step - rise) / max(1, recipe.steps - rise)
    return min((step + 1) / rise, 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * fall)))


def train(model: Any, head: MaskHead, recipe: Recipe, report: Callable[[str], None]) -> list[float]:
    """Trains whatever in the model requires a gradient; returns the loss of every step."""
    rng = np.random.default_rng(recipe.seed)
    optimizer = _optimizer([model, head], recipe)
    losses: list[float] = []
    started = time.monotonic()
    model.train()
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * _rate(step, recipe)
        losses.append(_step(model, head, optimizer, draw_batch(recipe, rng), recipe))
        if (step + 1) % max(1, recipe.steps // 20) == 0:
            seconds = time.monotonic() - started
            report(f"step {step + 1} of {recipe.steps}: loss {np.mean(losses[-20:]):.3f}, {seconds:.0f} s")
    model.eval()
    return losses


def _step(model: Any, head: MaskHead, optimizer: Any, batch: Batch, recipe: Recipe) -> float:
    contrast = contrastive_loss(model, batch)
    optimizer.zero_grad()
    (contrast + recipe.mask_weight * head.loss(batch.masks)).backward()
    torch.nn.utils.clip_grad_norm_([one for group in optimizer.param_groups for one in group["params"]], 1.0)
    optimizer.step()
    with torch.no_grad():
        model.logit_scale.clamp_(0.0, _MAX_LOGIT_SCALE)
    return float(contrast.detach())
