"""Runs one tower's ONNX graph in ONNX Runtime: one tensor in, one embedding per item out.

The image encoder and the text encoder share this file; what differs stands in their `config.pbtxt`.
"""

import json
from pathlib import Path

import clip_onnx
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Concatenates the requests of a dynamic batch, runs the graph, hands every request its rows."""

    def initialize(self, args):
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        folder = Path(args["model_repository"]) / args["model_version"]
        self.input_name = config["input"][0]["name"]
        self.output_name = config["output"][0]["name"]
        self.encoder = clip_onnx.Encoder(
            folder / parameters["model_file"],
            intra_op_threads=int(parameters["intra_op_threads"]),
            slice_batch=int(parameters["slice_batch"]),
        )

    def execute(self, requests):
        arrays = [pb_utils.get_input_tensor_by_name(r, self.input_name).as_numpy() for r in requests]
        try:
            embeddings = self.encoder.encode_all(arrays)
        except Exception as error:
            message = f"{self.input_name}: the graph failed on shapes {[a.shape for a in arrays]}: {error}"
            failure = pb_utils.TritonError(message, pb_utils.TritonError.INTERNAL)
            return [pb_utils.InferenceResponse(error=failure) for _ in requests]
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor(self.output_name, embedding)])
            for embedding in embeddings
        ]
