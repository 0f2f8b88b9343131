"""The same build as a line for `trtexec`, TensorRT's own tool: to measure, and to show NVIDIA what was built."""

from __future__ import annotations

import shlex
from pathlib import Path

from tritonclip_export.engine.boundary import BuildRequest
from tritonclip_export.engine.profiles import Shape

MIB_PER_GIB = 1024


def trtexec_line(request: BuildRequest, engine: Path) -> str:
    """Build `engine` as `request` says."""
    profile = request.profile
    words = ["trtexec", f"--onnx={request.onnx}", f"--saveEngine={engine}"]
    # Needed on TensorRT 10; 11 knows nothing else, and takes the flag as it is.
    words += ["--stronglyTyped", "--noTF32"]
    for name, shape in zip(("min", "opt", "max"), profile.shapes(), strict=True):
        words.append(f"--{name}Shapes={profile.input_name}:{_sizes(shape)}")
    if request.workspace_gib is not None:
        words.append(f"--memPoolSize=workspace:{request.workspace_gib * MIB_PER_GIB:g}")
    if request.version_compatible:
        words.append("--versionCompatible")
    words.append(f"--timingCacheFile={request.timing_cache}")
    return shlex.join(words)


def _sizes(shape: Shape) -> str:
    return "x".join(map(str, shape))
