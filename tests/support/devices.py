"""The devices that a test runs on: the CPU everywhere, a GPU where there is one, and the same test for both."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import onnxruntime
import pytest

from tritonclip_export.frameworks import torch

ENCODER = Path(__file__).parents[2] / "model_repository" / "image_encoder" / "1"
sys.path.append(str(ENCODER))

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def _missing() -> str | None:
    with warnings.catch_warnings():
        # Of a driver that is too old, which is no reason to end the other tests.
        warnings.simplefilter("ignore")
        available = torch.cuda.is_available()
    if not available:
        return "PyTorch sees no CUDA GPU; on a GPU machine run `make test-gpu`"
    if PROVIDERS["cuda"] not in onnxruntime.get_available_providers():
        return "this onnxruntime has no CUDA provider; run `make test-gpu`, which installs onnxruntime-gpu"
    return None


MISSING = _missing()
CUDA = pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(MISSING is not None, reason=MISSING or "")])
# Of benchmarks, which take half a minute on a CPU.
SLOW_DEVICES = [pytest.param("cpu", marks=pytest.mark.slow), CUDA]
DEVICES = ("cpu", CUDA)
