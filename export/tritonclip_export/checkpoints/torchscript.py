"""Reads the weights of a TorchScript archive, as OpenAI published CLIP, without running or compiling its program."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tritonclip_export.frameworks import torch

_MODULES = "__torch__."
# No other file that torch writes has it.
_CONSTANTS = "/constants.pkl"
_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}


class _Module(dict[str, Any]):
    """In place of a module: its attributes."""

    def __setstate__(self, attributes: dict[str, Any]) -> None:
        self.update(attributes)


class _Unpickler(pickle.Unpickler):
    """Makes tensors, and dictionaries of them where the program has modules; refuses every other name."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(io.BytesIO(_read(archive, f"{folder}/data.pkl")))
        self._archive, self._folder = archive, folder
        self._storages: dict[tuple[str, torch.dtype], torch.Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.".startswith(_MODULES):
            return _Module
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        raise pickle.UnpicklingError(f"it names {module}.{name}")

    def persistent_load(self, pid: Any) -> torch.Tensor:
        _, dtype, key, _, _ = pid
        if (key, dtype) not in self._storages:
            data = _read(self._archive, f"{self._folder}/data/{key}")
            empty = torch.empty(0, dtype=dtype)
            self._storages[key, dtype] = torch.frombuffer(bytearray(data), dtype=dtype) if data else empty
        return self._storages[key, dtype]


def _read(archive: zipfile.ZipFile, name: str) -> bytes:
    """A file of the archive, which is never larger than the archive itself."""
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise zipfile.BadZipFile(f"{name} is compressed, which torch never does")
    return archive.read(name)


def _tensor(storage: torch.Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Any:
    return storage.as_strided(size, stride, offset)


def is_script(path: Path) -> bool:
    """Whether the file is a TorchScript archive."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith(_CONSTANTS) for name in archive.namelist())


def load(path: Path) -> dict[str, torch.Tensor]:
    """The tensors that the program's modules hold, by their place.

    Raises:
        UnpicklingError: it names code. A damaged file raises whatever its parts run into.
    """
    with zipfile.ZipFile(path) as archive:
        constants = next(name for name in archive.namelist() if name.endswith(_CONSTANTS))
        return dict(_tensors(_Unpickler(archive, constants.removesuffix(_CONSTANTS)).load(), "", set()))


def _tensors(module: _Module, prefix: str, seen: set[int]) -> Iterator[tuple[str, torch.Tensor]]:
    if id(module) in seen:
        # Modules within modules twice each make more names than any memory holds.
        raise ValueError(f"the module {prefix[:-1]} has another place too")
    seen.add(id(module))
    for name, value in module.items():
        if isinstance(value, torch.Tensor):
            yield prefix + name, value
        elif isinstance(value, _Module):
            yield from _tensors(value, f"{prefix}{name}.", seen)
