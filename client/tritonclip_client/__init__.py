"""Call a CLIP that Triton serves: embeddings, similarity and zero-shot classification over gRPC.

    from tritonclip_client import ClipClient

    with ClipClient("127.0.0.1:8001") as client:
        embeddings = client.embed_images(["cat.jpg", "dog.jpg"])    # float32 [2, D]

Names are imported when they are first used, so that `import tritonclip_client` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .aio import AsyncClipClient
    from .causes import Cause
    from .client import ClipClient
    from .errors import (
        ClipError,
        DeadlineExceededError,
        InvalidImageError,
        InvalidInputError,
        InvalidItemError,
        InvalidTextError,
        ProtocolError,
        ServerError,
        ServerUnavailableError,
        TlsError,
    )
    from .health import Health
    from .long_texts import TruncationWarning
    from .options import Tls
    from .results import Classification, Score, Similarity
    from .spec import ImageSpec, Scoring, ServingSpec, TextSpec
    from .templates import TEMPLATES

__all__ = [
    "TEMPLATES",
    "AsyncClipClient",
    "Cause",
    "Classification",
    "ClipClient",
    "ClipError",
    "DeadlineExceededError",
    "Health",
    "ImageSpec",
    "InvalidImageError",
    "InvalidInputError",
    "InvalidItemError",
    "InvalidTextError",
    "ProtocolError",
    "Score",
    "Scoring",
    "ServerError",
    "ServerUnavailableError",
    "ServingSpec",
    "Similarity",
    "TextSpec",
    "Tls",
    "TlsError",
    "TruncationWarning",
]

_MODULES = {
    "aio": ("AsyncClipClient",),
    "causes": ("Cause",),
    "client": ("ClipClient",),
    "errors": (
        "ClipError",
        "DeadlineExceededError",
        "InvalidImageError",
        "InvalidInputError",
        "InvalidItemError",
        "InvalidTextError",
        "ProtocolError",
        "ServerError",
        "ServerUnavailableError",
        "TlsError",
    ),
    "health": ("Health",),
    "long_texts": ("TruncationWarning",),
    "options": ("Tls",),
    "results": ("Classification", "Score", "Similarity"),
    "spec": ("ImageSpec", "Scoring", "ServingSpec", "TextSpec"),
    "templates": ("TEMPLATES",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
