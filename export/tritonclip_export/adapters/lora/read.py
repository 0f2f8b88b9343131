"""Reads an adapter, whoever wrote it: a directory of PEFT's, or a file of PEFT's or of another tool."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tritonclip_export.adapters.lora.adapter import Adapter
from tritonclip_export.adapters.lora.config import CONFIG_FILE, parse_settings, read_config
from tritonclip_export.adapters.lora.formats import FORMATS, read_file
from tritonclip_export.adapters.lora.formats.files import load
from tritonclip_export.adapters.lora.formats.peft_file import PEFT_PREFIX
from tritonclip_export.adapters.lora.naming.namespace import recognize
from tritonclip_export.adapters.lora.peft.files import find_weights
from tritonclip_export.adapters.lora.refusals import needs_peft
from tritonclip_export.errors import AdapterError
from tritonclip_export.frameworks import torch

if TYPE_CHECKING:
    from tritonclip_export.adapters.lora.peft.method import MethodAdapter

__all__ = ["FORMATS", "Adapter", "read_adapter"]

DIFFUSERS_FILES = ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin")


def read_adapter(
    path: Path | str,
    *,
    alpha: float | None = None,
    rank: int | None = None,
    format: str | None = None,  # noqa: A002 - what it is called everywhere
) -> Adapter | MethodAdapter:
    """Read the adapter `path`: the directory that PEFT or diffusers wrote, or a file (see `formats.read_file`).

    Args:
        alpha, rank: LoRA's, where the file does not store them.
        format: the format of the file, where its names do not tell; see `formats.read_file`.

    Raises:
        AdapterError: it is no adapter, a file is broken or ambiguous, or its settings cannot be merged.
    """
    path = Path(path)
    if not path.exists():
        raise AdapterError(f"{path} does not exist; give the directory or the file that holds the adapter.")
    if path.is_file():
        return read_file(path, alpha=alpha, rank=rank, format=format)
    diffusers = next((path / name for name in DIFFUSERS_FILES if (path / name).is_file()), None)
    if diffusers is not None and not (path / CONFIG_FILE).is_file():
        return read_file(diffusers, alpha=alpha, rank=rank, format=format)
    _refuse_options(path, alpha, rank, format)
    return _read_directory(path)


def _read_directory(folder: Path) -> Adapter | MethodAdapter:
    config_file = folder / CONFIG_FILE
    raw = read_config(folder)
    if needs_peft(raw):
        from tritonclip_export.adapters.lora.peft.method import read_method

        return read_method(folder, raw)
    settings = parse_settings(raw, config_file)
    weight_file = find_weights(folder)
    tensors = _tensors(weight_file)
    namespace = recognize(tensors, settings.base_model_class, folder)
    return Adapter(folder, settings, namespace, tensors, (config_file, weight_file))


def _refuse_options(folder: Path, alpha: float | None, rank: int | None, format: str | None) -> None:  # noqa: A002
    given = {"alpha": alpha, "rank": rank, "format": None if format == "peft" else format}
    named = [f"{name} {value}" for name, value in given.items() if value is not None]
    if named and (folder / CONFIG_FILE).is_file():
        raise AdapterError(
            f"{' and '.join(named)} was given, but {folder} is PEFT's directory, whose {CONFIG_FILE} says it; leave "
            "the option out."
        )


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    raw = load(path).tensors
    foreign = [key for key in raw if not key.startswith(PEFT_PREFIX)]
    if foreign:
        raise AdapterError(
            f"{len(foreign)} keys of {path} do not start with {PEFT_PREFIX} (first: {foreign[0]}), as PEFT's "
            "save_pretrained writes them; if another tool wrote the file, give the file instead of its directory."
        )
    return {key.removeprefix(PEFT_PREFIX): tensor for key, tensor in raw.items() if not _is_twice(key, raw)}


def _is_twice(key: str, tensors: Mapping[str, torch.Tensor]) -> bool:
    """With `bias="all"` PEFT writes the biases of modules in `modules_to_save` three times, the base's among them."""
    return ".original_module." in key or (".modules_to_save." in key and key.replace(".modules_to_save", "") in tensors)
