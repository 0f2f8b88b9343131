"""A pickle module for `torch.load` that reads the tensors of a training state and nothing else.

Training tools save optimizers and schedulers beside the weights. Those that refer to others do it as objects, which
`weights_only=True` refuses. Here they are skipped: no class of theirs is imported, and nothing is called but what makes
a tensor.
"""

from __future__ import annotations

import pickle
from typing import Any

_TENSORS = {"collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"}
_CONTAINERS = {"collections.defaultdict", "builtins.dict", "__builtin__.dict"}


class Skipped(dict[Any, Any]):
    """Stands where an object was, takes whatever the file says about it and keeps none of it."""

    def __new__(cls, *_arguments: Any, **_options: Any) -> Skipped:
        """Any arguments."""
        return super().__new__(cls)

    def __init__(self, *_arguments: Any, **_options: Any) -> None:
        super().__init__()

    def __setitem__(self, key: Any, value: Any) -> None:
        """Nothing."""

    def __setstate__(self, state: Any) -> None:
        """Nothing."""


class Unpickler(pickle.Unpickler):
    """Knows tensors; skips torch's optimizers and schedulers; refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        """See `pickle.Unpickler`.

        Raises:
            UnpicklingError: for what is not known.
        """
        if module.startswith("torch.optim.") or f"{module}.{name}" in _CONTAINERS:
            return Skipped
        if f"{module}.{name}" in _TENSORS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"the file refers to {module}.{name}")


def load(file: Any, **options: Any) -> Any:
    """As `pickle.load`; files of old versions of torch are several pickles in a row."""
    return Unpickler(file, **options).load()
