"""Reads a PyTorch file with the state of a training around its tensors, without running what is in it.

Training tools save optimizers and schedulers beside the weights, some as objects, which `weights_only=True` refuses.
Here they become empty stand-ins: nothing is called but what makes a tensor.
"""

from __future__ import annotations

import pickle
import types
from pathlib import Path
from typing import Any

from tritonclip_export.frameworks import torch

# What a pickle may name and gets: tensors and the containers around them.
_REBUILDERS = {
    ("collections", "OrderedDict"),
    ("torch", "Size"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
}
# What it may name and gets an empty stand-in for: the training state, which is not used.
_TRAINING = ("torch", "numpy", "dassl", "collections", "copyreg", "_codecs", "functools")
_BUILTINS = ("dict", "list", "set", "frozenset", "tuple", "object", "int", "float", "slice", "getattr")
# Protocol 2, which torch writes, calls these modules as Python 2 did.
_OLD_NAMES = {"__builtin__": "builtins", "copy_reg": "copyreg"}


class _StandIn(dict[Any, Any]):
    """In place of any object of the training state; nothing of that object's code is run."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __setstate__(self, _: Any) -> None:
        """Drop what the object held."""

    def append(self, _: Any) -> None:
        """Drop an element."""

    def extend(self, _: Any) -> None:
        """Drop elements."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = _OLD_NAMES.get(module, module)
        if (module, name) in _REBUILDERS:
            return super().find_class(module, name)
        if module.split(".")[0] in _TRAINING or (module == "builtins" and name in _BUILTINS):
            return _StandIn
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _load(file: Any, **options: Any) -> Any:
    return _Unpickler(file, **options).load()


# Files of old versions of torch are several pickles in a row, which it reads one by one.
_PICKLE = types.SimpleNamespace(Unpickler=_Unpickler, load=_load, __name__="inert pickle")


def load(path: Path) -> Any:
    """What torch saved in `path`, on the CPU.

    Raises:
        UnpicklingError: it names code of another kind. A damaged file raises whatever its opcodes run into.
    """
    return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_PICKLE)
