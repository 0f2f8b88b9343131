"""Reads an adapter that PEFT's `save_pretrained` wrote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tritonclip_export.errors import AdapterError, CheckpointError
from tritonclip_export.frameworks import torch
from tritonclip_export.lora.config import CONFIG_FILE, LoraSettings, read_settings
from tritonclip_export.lora.namespace import Namespace, recognize
from tritonclip_export.weights import read_weights

WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter as it was saved.

    Attributes:
        path: the directory it was read from.
        settings: what its adapter_config.json says.
        namespace: "open_clip" or "hf", whose module names it speaks.
        tensors: its weights by their names in the trained model, without PEFT's prefix.
        files: the files that were read, for hashing.
    """

    path: Path
    settings: LoraSettings
    namespace: Namespace
    tensors: dict[str, torch.Tensor]
    files: tuple[Path, ...]

    @property
    def name(self) -> str:
        """The name of its directory."""
        return self.path.resolve().name


def read_adapter(path: Path | str) -> Adapter:
    """Read the adapter directory `path` (adapter_config.json and adapter_model.safetensors or .bin).

    Raises:
        AdapterError: it is no adapter directory, a file is broken, or its settings cannot be merged.
    """
    folder = Path(path)
    _require_directory(folder)
    settings = read_settings(folder)
    weight_file = _weight_file(folder)
    tensors = _tensors(weight_file)
    namespace = recognize(tensors, settings.base_model_class, folder)
    return Adapter(folder, settings, namespace, tensors, (folder / CONFIG_FILE, weight_file))


def _require_directory(folder: Path) -> None:
    if not folder.exists():
        raise AdapterError(f"{folder} does not exist; give the directory that PEFT's save_pretrained wrote.")
    if not folder.is_dir():
        raise AdapterError(
            f"{folder} is a file; give the directory that holds it and {CONFIG_FILE}, because the scale of "
            "an adapter is not in its weights."
        )


def _weight_file(folder: Path) -> Path:
    found = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if found is None:
        raise AdapterError(f"{folder} has none of {', '.join(WEIGHT_FILES)}; save the adapter again with PEFT.")
    return found


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        raw = read_weights(path)
    except CheckpointError as error:
        raise AdapterError(f"The adapter cannot be read: {error}") from error
    foreign = [key for key in raw if not key.startswith(PEFT_PREFIX)]
    if foreign:
        raise AdapterError(
            f"{len(foreign)} keys of {path} do not start with {PEFT_PREFIX} (first: {foreign[0]}); this version "
            "reads adapters in PEFT's format. Save the adapter with PEFT's save_pretrained."
        )
    bad = [key for key, tensor in raw.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise AdapterError(
            f"{len(bad)} tensors of {path} hold NaN or infinity (first: {bad[0]}); the training diverged. "
            "Use an earlier save of the adapter."
        )
    return {key.removeprefix(PEFT_PREFIX): tensor for key, tensor in raw.items()}
