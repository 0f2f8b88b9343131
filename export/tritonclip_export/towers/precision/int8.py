"""Dynamic quantization for CPUs: weights in int8, activations rounded to 8 bits as they come, per tensor of a batch."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

# Their weights are all but the whole of a tower; token embeddings and convolutions stay float32.
OPERATORS = ["MatMul", "Gemm"]
# A scale a column: closer than one a matrix, for trained weights above all.
PER_CHANNEL = True


def quantize(path: Path) -> None:
    """Replace the float32 graph at `path`, and the weights beside it, by a quantized one."""
    data = path.with_name(f"{path.name}.data")
    beside = path.with_name("quantized")
    beside.mkdir()
    with _without_warnings():
        quantize_dynamic(
            path,
            beside / path.name,
            op_types_to_quantize=OPERATORS,
            per_channel=PER_CHANNEL,
            weight_type=QuantType.QInt8,
            # Weights of 7 bits: else CPUs without VNNI, which sum pairs of products in 16 bits, saturate.
            reduce_range=True,
            # What was too large for one file may be so still.
            use_external_data_format=data.exists(),
        )
    data.unlink(missing_ok=True)
    for file in beside.iterdir():
        file.replace(path.with_name(file.name))
    shutil.rmtree(beside)
    onnx.checker.check_model(path)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """It asks for a preprocessing that the exporter's own optimization has done."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
