"""Starts a real tritonserver over an exported model repository, and stops it with everything it started.

    from tritonclip_serve import TritonServer

    with TritonServer(Path("repository")) as server:
        print(server.grpc_address)

Names are imported when they are first used: the command line reads this package to print its help.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import ModelLoadError, ServeError
    from .server import TritonServer

__all__ = ["ModelLoadError", "ServeError", "TritonServer"]

_HOMES = {"ModelLoadError": "errors", "ServeError": "errors", "TritonServer": "server"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
