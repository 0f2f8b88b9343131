"""One file of adapter weights, before anybody knows its format."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open

from tritonclip_export.checkpoints import weights
from tritonclip_export.errors import AdapterError, CheckpointError
from tritonclip_export.frameworks import torch

_PICKLES = (".pt", ".pth", ".bin")
# The factors of a low-rank product, in any format.
_FACTOR = re.compile(r"lora_(embedding_)?(A|B|down|up)(\.|$)")


@dataclass(frozen=True)
class Options:
    """What a person said about a file because the file does not.

    Attributes:
        alpha: LoRA's alpha.
        rank: LoRA's rank.
        choice: which of several things in the file; what follows the colon of a format such as "kohya:te1".
    """

    alpha: float | None = None
    rank: int | None = None
    choice: str | None = None

    def __post_init__(self) -> None:
        if self.alpha is not None and not math.isfinite(self.alpha):
            raise AdapterError(f"alpha is {self.alpha}; give a finite number such as 16.")
        if self.rank is not None and self.rank < 1:
            raise AdapterError(f"rank is {self.rank}; give a whole number of at least 1.")

    def stored_or_given(self, stored: float | None, path: Path) -> float | None:
        """The alpha of the file, else the one that was given, else None.

        Raises:
            AdapterError: both are there and differ.
        """
        if stored is not None and self.alpha is not None and stored != self.alpha:
            raise AdapterError(f"{path} stores alpha {stored:g}, not {self.alpha:g}; leave the option out.")
        return self.alpha if stored is None else stored


@dataclass(frozen=True)
class AdapterFile:
    """Named tensors, and what the file says about them beside the tensors."""

    path: Path
    tensors: dict[str, torch.Tensor]
    metadata: Mapping[str, Any] = field(default_factory=dict)


def load(path: Path) -> AdapterFile:
    """Read `path` without running what is in it.

    Raises:
        AdapterError: it is missing, cut off, holds other things than tensors, or tensors that are not finite.
    """
    try:
        content: Any = weights.read_pickle(path) if path.suffix in _PICKLES and path.is_file() else None
        if _is_nested(content):
            file = AdapterFile(path, _flat(content["weights"]), content["metadata"])
        elif content is not None:
            file = AdapterFile(path, weights.unwrap(content, path))
        else:
            file = AdapterFile(path, weights.read_weights(path), _header(path))
    except CheckpointError as error:
        raise AdapterError(f"The adapter cannot be read: {error}") from error
    _require_numbers(file)
    return file


def require_no_more(names: list[str], what: str, path: Path) -> None:
    """Raise AdapterError if tensors are left that a format has no place for."""
    if names:
        raise AdapterError(
            f"{len(names)} tensors of {path} have no place in {what} (first: {', '.join(sorted(names)[:3])}); they "
            "cannot be merged. If the file is of another tool, name its format."
        )


def _is_nested(content: Any) -> bool:
    """The layout of CLIP-LoRA: a dict of layers, and a dict of settings."""
    return isinstance(content, dict) and all(isinstance(content.get(key), dict) for key in ("weights", "metadata"))


def _flat(tree: Mapping[Any, Any], prefix: str = "") -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            tensors.update(_flat(value, f"{prefix}{key}."))
        elif isinstance(value, torch.Tensor):
            tensors[f"{prefix}{key}"] = value
        else:
            raise AdapterError(f"The adapter cannot be read: {prefix}{key} is a {type(value).__name__}, not a tensor.")
    return tensors


def _header(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def _require_numbers(file: AdapterFile) -> None:
    quantized = [
        key
        for key, tensor in file.tensors.items()
        if (tensor.itemsize == 1 if tensor.is_floating_point() else _FACTOR.search(key))
    ]
    if quantized:
        raise AdapterError(
            f"{len(quantized)} tensors of {file.path} are {file.tensors[quantized[0]].dtype} (first: {quantized[0]}), "
            "as quantized ones are; save the adapter in 16 or 32 bits."
        )
    # Masks are saved with a whole model and hold infinity rightly.
    named = {key: tensor for key, tensor in file.tensors.items() if not re.search(r"(^|\.)attn_mask$", key)}
    bad = [key for key, tensor in named.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise AdapterError(
            f"{len(bad)} tensors of {file.path} hold NaN or infinity (first: {bad[0]}); the training diverged. "
            "Use an earlier save of the adapter."
        )
