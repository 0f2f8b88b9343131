"""Reads arrays from numpy, safetensors and PyTorch files, without running what is in them."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tritonclip_export.errors import ClassifierError

Floats = npt.NDArray[np.float32]
# The name of an array that stands alone in its file.
ALONE = ""


def read_arrays(path: Path) -> dict[str, Floats]:
    """Every array of a file in float32, under its name; names of nested dicts are joined with dots.

    A training wrapper is taken off: of a file with an entry `state_dict` only that one is read.

    Raises:
        ClassifierError: the file is missing, cut off, of another kind, or wants to run code.
    """
    if not path.is_file():
        raise ClassifierError(f"no file at {path}; give a .npy, .safetensors or PyTorch file")
    arrays = dict(_named(_read(path)))
    if not arrays:
        raise ClassifierError(f"{path} holds no arrays; give a .npy, .safetensors or PyTorch file of weights")
    return arrays


def read_array(path: Path) -> Floats:
    """The one array of a file.

    Raises:
        ClassifierError: as `read_arrays`, or the file holds several.
    """
    arrays = read_arrays(path)
    if len(arrays) > 1:
        raise ClassifierError(f"{path} holds {len(arrays)} arrays ({', '.join(list(arrays)[:4])}); one is expected")
    return next(iter(arrays.values()))


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        return _read_torch(path)
    except pickle.UnpicklingError as error:
        raise ClassifierError(
            f"{path} is no file of weights, or holds more than tensors and would run code when read; if you trust it, "
            "save its tensors as safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise ClassifierError(f"{path} cannot be read ({error}); copy or download it again") from error


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"no whole safetensors file: {error}") from error


def _read_torch(path: Path) -> Any:
    from tritonclip_export.checkpoints import inert_pickle

    content = inert_pickle.load(path)
    is_training_state = isinstance(content, dict) and isinstance(content.get("state_dict"), dict)
    return content["state_dict"] if is_training_state else content


def _named(content: Any, name: str = ALONE) -> Iterator[tuple[str, Floats]]:
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _named(value, f"{name}.{key}".lstrip("."))
    elif isinstance(content, np.ndarray):
        yield name, content.astype(np.float32)
    elif hasattr(content, "detach"):
        yield name, content.detach().float().numpy()
