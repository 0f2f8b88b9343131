"""A served tower as plain PyTorch, to run it on a GPU without ONNX: every cast stands in its graph."""

from __future__ import annotations

import copy
import warnings
from typing import Any

from torch.export import Dim

from tritonclip_export.frameworks import torch


def plain_module(tower: torch.nn.Module, example: torch.Tensor, device: str) -> Any:
    """`tower` traced on `device`, for any batch; all other sizes are those of `example`, which has two rows or more.

    A typed tower is not to be run itself: outside of a trace it computes in float32 what a GPU computes in float16,
    see `precision.policy`.
    """
    with torch.no_grad(), warnings.catch_warnings():
        # The tracer warns about its own internals; what it made is compared with the reference.
        warnings.simplefilter("ignore")
        program = torch.export.export(
            # A copy, so that its memory ends with what is returned.
            copy.deepcopy(tower).to(device),
            (example.to(device),),
            dynamic_shapes=({0: Dim("batch", min=1)},),
        )
        return program.module()
