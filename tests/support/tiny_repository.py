"""A repository that is loaded in a second: two models that stand in for the ensembles and tell who called them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from tritonclip_export.repository.manifest import write_manifest

NAME_BYTES = 16
_CONFIG = """
name: "{model}"
backend: "python"
max_batch_size: 8
input [ {{ name: "{tensor}" data_type: TYPE_STRING dims: [ 1 ] }} ]
output [ {{ name: "embedding" data_type: TYPE_FP32 dims: [ {width} ] }} ]
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
"""
_MODEL = """
import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        caller = json.loads(request.parameters() or "{{}}").get("tritonclip-caller", "").encode()
        letters = np.frombuffer(caller.ljust({width} - 1, b"\\0")[: {width} - 1], dtype=np.uint8)
        rows = pb_utils.get_input_tensor_by_name(request, "{tensor}").as_numpy().shape[0]
        embedding = np.tile(np.append(letters, 1).astype(np.float32), (rows, 1))
        return pb_utils.InferenceResponse([pb_utils.Tensor("embedding", embedding)])
"""


def write_tiny_repository(root: Path) -> Path:
    """Write it below `root`, and return `root`."""
    for model, tensor in (("embed_image", "image"), ("embed_text", "text")):
        (root / model / "1").mkdir(parents=True)
        given = {"model": model, "tensor": tensor, "width": NAME_BYTES + 1}
        (root / model / "config.pbtxt").write_text(_CONFIG.format(**given))
        (root / model / "1" / "model.py").write_text(_MODEL.format(**given))
    write_manifest(root, {"spec": {"name": "tiny", "fingerprint": "0123456789abcdef"}})
    return root


def caller_of(embedding: npt.NDArray[np.float32]) -> str:
    """Who the models say has called them."""
    return embedding[0, :NAME_BYTES].astype(np.uint8).tobytes().rstrip(b"\0").decode()
