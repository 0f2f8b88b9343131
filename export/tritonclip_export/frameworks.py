"""The one place that imports torchvision, and with it open_clip, timm, peft and accelerate.

PyPI's torchvision is built for CUDA; beside a CPU build of torch its compiled operators do not load
and `import torchvision` dies while registering two of them. Its transforms, all that is used here,
are plain Python, so the two operators are declared and the import is done again.
"""

from __future__ import annotations

import sys

import torch

_NMS_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_declared: list[torch.library.Library] = []


def _ensure_torchvision() -> None:
    """Import torchvision, with the operators that its import needs declared if they are missing."""
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        _declare_operators()
        import torchvision  # noqa: F401


def _declare_operators() -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(name + _NMS_SCHEMA)
    _declared.append(library)


_ensure_torchvision()

import open_clip  # noqa: E402
from accelerate import init_empty_weights  # noqa: E402

__all__ = ["init_empty_weights", "open_clip", "torch"]
