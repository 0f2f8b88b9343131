"""Reads a file of weights without running what is in it."""

from __future__ import annotations

import pickle
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from tritonclip_export.errors import CheckpointError
from tritonclip_export.frameworks import torch

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")

# Scalars that OpenAI's files carry beside the weights.
_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict from safetensors, or from a pickle that holds nothing but tensors.

    Training wrappers are taken off: a `state_dict` entry, and the `module.` prefix of data parallel.

    Raises:
        CheckpointError: the file is missing, cut off, of another kind, or wants to run code.
    """
    if not path.is_file():
        raise CheckpointError(f"no weights at {path}; give a file ending in {', '.join(SUFFIXES)}")
    if path.suffix not in SUFFIXES:
        raise CheckpointError(f"{path} is no file of weights; allowed: {', '.join(SUFFIXES)}")
    tensors = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    return _unwrap(tensors, path)


def _read_safetensors(path: Path) -> object:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}); copy or download it again") from error


def _read_pickle(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{path} holds more than tensors and would run code when read ({reason}); save its state dict "
            "as safetensors in an environment where you trust it"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); copy or download it again") from error


def _unwrap(tensors: object, path: Path) -> dict[str, torch.Tensor]:
    if isinstance(tensors, dict) and isinstance(tensors.get("state_dict"), dict):
        tensors = tensors["state_dict"]
    if not isinstance(tensors, dict) or not tensors:
        raise CheckpointError(f"{path} holds {type(tensors).__name__}, not a state dict of named tensors")
    named = {key.removeprefix("module."): value for key, value in tensors.items() if key not in _NOT_WEIGHTS}
    strange = [key for key, value in named.items() if not isinstance(value, torch.Tensor)]
    if strange:
        raise CheckpointError(f"{path} holds {len(strange)} entries that are no tensors, first {strange[0]!r}")
    return named
