"""What every reader of adapters makes, whatever the format of the file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tritonclip_export.adapters.lora.config import LoraSettings
from tritonclip_export.adapters.lora.naming.namespace import Namespace
from tritonclip_export.frameworks import torch


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter in PEFT's grammar.

    Attributes:
        path: the directory or file it was read from.
        settings: what its adapter_config.json says, or what a file of another format amounts to.
        namespace: "open_clip" or "hf", whose module names it speaks.
        tensors: its weights by their names in the trained model, without PEFT's prefix.
        files: the files that were read, for hashing.
        format: one of `formats.FORMATS`.
        notes: what a person should know of how the file was read.
        choices: by name, the adapters of a file that holds several; `fit_adapter` takes the one that fits a model.
        whole_model: the file holds base weights too; `fit_adapter` takes out those that say nothing new.
        may_be_partial: whether tensors may be missing for modules that its adapter_config.json names.
    """

    path: Path
    settings: LoraSettings
    namespace: Namespace
    tensors: dict[str, torch.Tensor]
    files: tuple[Path, ...]
    format: str = "peft"
    notes: tuple[str, ...] = ()
    choices: tuple[tuple[str, Adapter], ...] = ()
    whole_model: bool = False
    may_be_partial: bool = False

    @property
    def name(self) -> str:
        """The name of its directory or file."""
        return self.path.resolve().name
