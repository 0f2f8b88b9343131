"""Reads a file of weights without running what is in it."""

from __future__ import annotations

import json
import pickle
import re
import warnings
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from tritonclip_export.checkpoints import torchscript
from tritonclip_export.errors import CheckpointError
from tritonclip_export.frameworks import torch

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
# Lists which of several files holds which weight.
INDEX_SUFFIX = ".index.json"

# What training puts before a name: torch.compile, data parallel.
_WRAPPERS = re.compile(r"^(_orig_mod\.|module\.)+")

# Scalars that OpenAI's files carry beside the weights.
_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict from safetensors, from a pickle that holds nothing but tensors, or from an index of such files.

    Training wrappers are taken off: a `state_dict` entry, the prefixes of data parallel and of torch.compile.

    Raises:
        CheckpointError: the file is missing, cut off, of another kind, or wants to run code.
    """
    if not path.is_file():
        raise CheckpointError(f"no weights at {path}; give a file ending in {', '.join(SUFFIXES)}")
    if path.name.endswith(INDEX_SUFFIX):
        return _read_shards(path)
    if path.suffix not in SUFFIXES:
        raise CheckpointError(f"{path} is no file of weights; allowed: {', '.join(SUFFIXES)}")
    tensors = _read_safetensors(path) if path.suffix == ".safetensors" else read_pickle(path)
    return unwrap(tensors, path)


def _read_shards(index: Path) -> dict[str, torch.Tensor]:
    try:
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        files = sorted({Path(file).name for file in named})
    except (OSError, ValueError, RecursionError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index} is no index of weights ({error!r}); copy or download it again") from error
    if any(file.endswith(INDEX_SUFFIX) for file in files):
        raise CheckpointError(f"{index} lists another index; copy or download it again")
    absent = [file for file in files if not (index.parent / file).is_file()]
    if absent or not files:
        raise CheckpointError(
            f"{index} lists {len(files)} files of weights, {len(absent)} of them missing ({', '.join(absent[:3])}); "
            "copy or download the whole directory again"
        )
    shards = [read_weights(index.parent / file) for file in files]
    return {name: tensor for shard in shards for name, tensor in shard.items()}


def _read_safetensors(path: Path) -> object:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}); copy or download it again") from error


def read_pickle(path: Path) -> object:
    """What torch saved, if it is data; raises CheckpointError for code and broken files."""
    try:
        if torchscript.is_script(path):
            return torchscript.load(path)
        with warnings.catch_warnings():
            # torch warns of pickles that it did not write, before it refuses them.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is no file of weights, or holds more than tensors and would run code when read; if you trust "
            "it, save its state dict as safetensors"
        ) from error
    except Exception as error:  # a damaged pickle may raise anything
        raise CheckpointError(f"{path} cannot be read ({error!r}); copy or download it again") from error


def unwrap(tensors: object, path: Path) -> dict[str, torch.Tensor]:
    """The state dict inside `tensors`, without what training wrapped around it."""
    if isinstance(tensors, dict) and isinstance(tensors.get("state_dict"), dict):
        tensors = tensors["state_dict"]
    if isinstance(tensors, dict) and not tensors:
        raise CheckpointError(f"{path} holds no tensors; save or copy it again")
    if not isinstance(tensors, dict) or not all(isinstance(key, str) for key in tensors):
        raise CheckpointError(f"{path} holds {type(tensors).__name__}, not a state dict of named tensors")
    named = {_WRAPPERS.sub("", key): value for key, value in tensors.items() if key not in _NOT_WEIGHTS}
    strange = [key for key, value in named.items() if not isinstance(value, torch.Tensor)]
    if strange:
        raise CheckpointError(f"{path} holds {len(strange)} entries that are no tensors, first {strange[0]!r}")
    return named
