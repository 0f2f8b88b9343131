"""What a result needs beside its numbers: the machine and the versions, without anybody's name."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

PACKAGES = (
    *("tritonclip", "numpy", "Pillow", "grpcio", "protobuf", "tritonclient", "locust", "gevent"),
    *("onnxruntime", "onnxruntime-gpu", "nvidia-pytriton", "torch", "tensorrt", "pycuda"),
    *("nvidia-cudnn-cu13", "nvidia-cublas"),
)


def describe_machine() -> dict[str, object]:
    """CPU, cores and memory of this machine; neither its name nor its address."""
    return {
        "cpu": cpu_model(),
        "cores": psutil.cpu_count(),
        "cores_usable": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def cpu_model() -> str:
    """The processor as the kernel names it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "unknown")


def cpu_slug() -> str:
    """The processor's name as a part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", cpu_model().lower()).strip("-")


def describe_versions() -> dict[str, str]:
    """Python and the installed packages that can change a result."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
