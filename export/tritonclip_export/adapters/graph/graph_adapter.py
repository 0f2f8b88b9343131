"""What every method that changes the graph has in common."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritonclip_export.checkpoints.model import weights_hash
from tritonclip_export.errors import AdapterError
from tritonclip_export.frameworks import torch


@dataclass(frozen=True)
class GraphAdapter(ABC):
    """An adapter that was read and can be attached to a model.

    Attributes:
        path: what was given.
        method: its name, for people: "AdapterHub bottleneck", "VPT-deep" …
        files: the files that were read, for hashing.
        tensors: its weights by the names in the files.
        notes: what the user should know about serving it.
    """

    path: Path
    method: str
    files: tuple[Path, ...]
    tensors: Mapping[str, torch.Tensor]
    notes: tuple[str, ...]

    @abstractmethod
    def attach(self, model: Any) -> None:
        """Change `model` in place, so that `encode_image` and `encode_text` give the adapted features.

        The model is open_clip's, in float32; its attention may have been replaced by `towers.SelfAttention`.

        Raises:
            AdapterError: the adapter does not fit the model; then the model is as it was.
        """

    def settings(self) -> str:
        """What changes the arithmetic beside the weights, as text that is always the same."""
        return self.method

    def digest(self) -> str:
        """SHA-256 of the weights and the settings, for the fingerprint of the served model."""
        return hashlib.sha256(f"{weights_hash(dict(self.tensors))}\n{self.settings()}".encode()).hexdigest()


def load_exactly(module: torch.nn.Module, tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """Fill `module` with float32 copies of `tensors`, none missing and none left over.

    Raises:
        AdapterError: names the first tensor that does not fit; `where` says whose it is.
    """
    wanted = module.state_dict()
    problems = [f"{name} is missing" for name in wanted if name not in tensors]
    problems += [f"{name} is not part of it" for name in tensors if name not in wanted]
    problems += [
        f"{name} is {tuple(tensors[name].shape)}, not {tuple(wanted[name].shape)}"
        for name in wanted
        if name in tensors and tensors[name].shape != wanted[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise AdapterError(
            f"{where} does not fit the model: {problems[0]}{more}; give the checkpoint that the adapter was trained on"
        )
    module.load_state_dict({name: tensors[name].float() for name in wanted})
