"""Reads the files of an adapter without running what is in them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

from tritonclip_export.checkpoints import inert_pickle
from tritonclip_export.checkpoints.weights import read_weights, unwrap
from tritonclip_export.errors import AdapterError, CheckpointError
from tritonclip_export.frameworks import torch


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The state dict in a file: safetensors, or a pickle of any name, with the training state around it or without.

    Dassl's checkpoints hold a scheduler object beside the weights, which `torch.load(weights_only=True)` refuses;
    here it becomes an empty stand-in.

    Raises:
        AdapterError: the file is missing or cut off, holds no tensors, NaN, or names code of another kind.
    """
    if not path.is_file():
        raise AdapterError(f"no weights at {path}; give the file that the training wrote")
    try:
        raw = read_weights(path) if path.suffix == ".safetensors" else _model(inert_pickle.load(path))
        tensors = unwrap(raw, path)
    except CheckpointError as error:
        raise AdapterError(f"the adapter cannot be read: {error}") from error
    except pickle.UnpicklingError as error:
        raise AdapterError(
            f"{path} is no file of weights, or would run code when read ({error}); if you trust it, save its state "
            "dict as safetensors"
        ) from error
    except Exception as error:  # a damaged pickle raises whatever its opcodes run into
        raise AdapterError(f"{path} cannot be read ({error!r}); copy or save the adapter again") from error
    _require_finite(tensors, path)
    return {name: tensor.detach() for name, tensor in tensors.items()}


def read_json(path: Path) -> dict[str, Any]:
    """The settings in a file.

    Raises:
        AdapterError: it is missing or no JSON object.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"{path} is not readable JSON ({error}); copy or save the adapter again") from error
    if not isinstance(raw, dict):
        raise AdapterError(f"{path} holds a {type(raw).__name__}, not the settings of an adapter")
    return raw


def _model(raw: Any) -> Any:
    """What some training scripts save as `model`, beside the state of the optimizer and its scheduler."""
    inner = raw.get("model") if isinstance(raw, dict) and "state_dict" not in raw else None
    return inner if isinstance(inner, dict) else raw


def _require_finite(tensors: dict[str, torch.Tensor], path: Path) -> None:
    bad = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise AdapterError(
            f"{len(bad)} tensors of {path} hold NaN or infinity (first: {bad[0]}); the training diverged. Use an "
            "earlier save of the adapter"
        )
