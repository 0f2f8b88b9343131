"""Visual prompt tuning: learned tokens among those of the image tower's layers.

Shallow: n tokens join the sequence before the first layer. Deep: before each layer 1 .. depth those n positions are
overwritten with that layer's tokens. Attention knows no order, so where in the sequence they stand changes nothing;
they stand after the class token. From KMnP/vpt (names `prompt_embeddings`, `deep_prompt_embeddings`, `prompt_proj`:
the tokens enter the first layer) and from muzairkhattak/multimodal-prompt-learning (names `VPT`, `VPT_shallow`, and
MaPLe's `ctx`, which its `proj` maps to the image tower: the first tokens pass `ln_pre`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from tritonclip_export.adapters.graph.blocks import native_blocks, width_of
from tritonclip_export.adapters.graph.graph_adapter import GraphAdapter
from tritonclip_export.errors import AdapterError
from tritonclip_export.frameworks import torch

_TEXT_NOTE = (
    "{method} also learned prompts of the texts, which depend on its own templates and are not in the text tower that "
    "is served; compare these image embeddings with class features that {method} computed"
)
_LAYER_VPT = re.compile(r"(?:.*\.)?image_encoder\.transformer\.resblocks\.(\d+)\.VPT_shallow$")
_FIRST_VPT = re.compile(r"(?:.*\.)?image_encoder\.VPT$")
_MAPLE = "compound_prompts_text."
_MAPLE_PROJECTION = re.compile(r"(?:.*\.)?prompt_learner\.proj\.(weight|bias)$")


@dataclass(frozen=True)
class PromptAdapter(GraphAdapter):
    """Prompts of the image tower.

    Attributes:
        first: float32 [n, width], before layer 0.
        deep: float32 [n, width] by the layer before which they overwrite the last ones.
        before_norm: whether `first` passes the tower's `ln_pre`.
    """

    first: torch.Tensor
    deep: Mapping[int, torch.Tensor]
    before_norm: bool

    def attach(self, model: Any) -> None:
        """See `GraphAdapter.attach`."""
        blocks = native_blocks(model, "vision")
        visual = model.visual
        self._check(visual, blocks)
        with torch.no_grad():
            first = visual.ln_pre(self.first) if self.before_norm else self.first
        visual.transformer.register_buffer("prompts", first.clone())
        visual.transformer.register_forward_pre_hook(_insert)
        for layer, prompts in self.deep.items():
            blocks[layer].register_buffer("prompts", prompts.clone())
            blocks[layer].register_forward_pre_hook(_overwrite)

    def settings(self) -> str:
        """See `GraphAdapter.settings`."""
        return f"{self.method} {'before' if self.before_norm else 'after'} ln_pre"

    def _check(self, visual: Any, blocks: list[Any]) -> None:
        if hasattr(visual.transformer, "prompts"):
            raise AdapterError("the image tower has prompts already; give one set")
        if visual.pool_type != "tok" or visual.attn_pool is not None or not visual.transformer.batch_first:
            raise AdapterError(
                "prompts are served in image towers that pool their class token; this one averages or attends over "
                "all tokens, and implementations differ in whether the prompts take part"
            )
        width, layers = width_of(blocks[0]), len(blocks)
        if self.first.shape[1] != width:
            raise AdapterError(
                f"the prompts in {self.path} are {self.first.shape[1]} wide, and the image tower is {width} wide; give "
                "the checkpoint that they were trained on"
            )
        if self.deep and max(self.deep) >= layers:
            raise AdapterError(
                f"{self.path} has prompts for layer {max(self.deep)} of the image tower, and the model's has {layers} "
                "layers, counted from 0; give the checkpoint that they were trained on"
            )


def is_prompts(names: Mapping[str, Any]) -> bool:
    """Whether these are the names of prompts of an image tower."""
    return any(
        name.endswith("prompt_embeddings") or _FIRST_VPT.match(name) or _MAPLE in name or _MAPLE_PROJECTION.match(name)
        for name in names
    )


def read_prompts(path: Path, file: Path, tensors: Mapping[str, torch.Tensor]) -> PromptAdapter:
    """Read VPT, the visual side of independent prompting (IVLP, PromptSRC), or MaPLe's.

    Raises:
        AdapterError: tensors are missing, or their shapes do not go together.
    """
    values = {name: tensor.float() for name, tensor in tensors.items()}
    notes: tuple[str, ...] = ()
    before_norm = True
    if any(name.endswith("prompt_embeddings") for name in values):
        method, before_norm = "VPT", False
        first, deep = _vpt(values, path)
    elif any(_FIRST_VPT.match(name) for name in values):
        method = "independent prompting"
        first = next(value for name, value in values.items() if _FIRST_VPT.match(name))
        matches = {name: _LAYER_VPT.match(name) for name in values}
        deep = {int(match[1]): values[name] for name, match in matches.items() if match}
        learned_texts = any(re.search(r"text_encoder\..*VPT|prompt_learner\.ctx$", name) for name in values)
        notes = (_TEXT_NOTE.format(method=method),) if learned_texts else ()
    else:
        method = "MaPLe"
        first, deep = _maple(values, path)
        notes = (_TEXT_NOTE.format(method=method),)
    if any(prompts.shape != first.shape for prompts in deep.values()) or first.ndim != 2 or not len(first):
        shapes = sorted({tuple(prompts.shape) for prompts in (first, *deep.values())})
        raise AdapterError(f"the prompts in {path} are of shapes {shapes}; allowed: one shape (tokens, width) for all")
    name = f"{method}, {'deep' if deep else 'shallow'}"
    learned = {"first": first, **{f"deep.{layer}": prompts for layer, prompts in deep.items()}}
    return PromptAdapter(path, name, (file,), learned, notes, first, deep, before_norm)


def _vpt(values: Mapping[str, torch.Tensor], path: Path) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
    ends = {name.split(".")[-1]: name for name in values if name.endswith("prompt_embeddings")}
    if "prompt_embeddings" not in ends:
        raise AdapterError(f"{path} has deep_prompt_embeddings and no prompt_embeddings; save all prompts")
    prefix = ends["prompt_embeddings"].removesuffix("prompt_embeddings")
    project = _projection(values, f"{prefix}prompt_proj", path)
    first = values[ends["prompt_embeddings"]]
    if first.ndim != 3 or first.shape[0] != 1:
        raise AdapterError(f"prompt_embeddings in {path} are {tuple(first.shape)}; allowed: (1, tokens, width)")
    deep = values.get(f"{prefix}deep_prompt_embeddings", first.new_empty(0, 0, 0))
    return project(first[0]), {layer: project(prompts) for layer, prompts in enumerate(deep, start=1)}


def _maple(values: Mapping[str, torch.Tensor], path: Path) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
    prefix = next((name.removesuffix("ctx") for name in values if re.search(r"(^|\.)prompt_learner\.ctx$", name)), None)
    if prefix is None:
        raise AdapterError(f"{path} has MaPLe's projections and no prompt_learner.ctx; give the whole checkpoint")
    first = _projection(values, f"{prefix}proj", path)(values[f"{prefix}ctx"])
    layers = sorted(int(name.rsplit(".", 1)[1]) for name in values if name.startswith(f"{prefix}{_MAPLE}"))
    deep = {
        layer + 1: _projection(values, f"{prefix}compound_prompt_projections.{layer}", path)(
            values[f"{prefix}{_MAPLE}{layer}"]
        )
        for layer in layers
    }
    return first, deep


def _projection(values: Mapping[str, torch.Tensor], name: str, path: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """The linear layer of that name, or the identity where VPT was trained without one."""
    weight, bias = values.get(f"{name}.weight"), values.get(f"{name}.bias")
    if weight is None and name.endswith("prompt_proj"):
        return nn.Identity()
    if weight is None or bias is None or weight.ndim != 2:
        raise AdapterError(f"{path} has no whole linear layer {name}; give the whole checkpoint")
    return partial(nn.functional.linear, weight=weight, bias=bias)


def _insert(transformer: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    hidden = args[0]
    prompts = transformer.prompts.expand(hidden.shape[0], -1, -1)
    return (torch.cat([hidden[:, :1], prompts, hidden[:, 1:]], dim=1), *args[1:])


def _overwrite(block: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    hidden = args[0]
    prompts = block.prompts.expand(hidden.shape[0], -1, -1)
    rest = hidden[:, 1 + block.prompts.shape[0] :]
    return (torch.cat([hidden[:, :1], prompts, rest], dim=1), *args[1:])
