"""What a device can do at most: products of large matrices, and copies within its memory."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tritonclip_bench.gpu.device import Device, Spread, Work, is_out_of_memory, measure

DTYPES = {"cuda": ("bfloat16", "float16", "float32"), "cpu": ("float32",)}
SIZES = {"cuda": (2048, 4096, 8192, 16384), "cpu": (512, 1024, 2048)}
# Far beyond any cache.
COPY_BYTES = {"cuda": 2**30, "cpu": 2**28}
_DATA_SHEETS = Path(__file__).with_name("data_sheets.json")


@dataclass(frozen=True)
class Peaks:
    """What was measured, and what the maker says.

    Attributes:
        flops: by dtype, operations a second of the best size; a multiply-add is two.
        sizes: by dtype, operations a second of every square size that was tried.
        bytes_per_s: read and written, of a large copy.
        data_sheet: {"flops", "bytes_per_s", "source"}, or None where the device is not in the table.
    """

    flops: dict[str, Spread]
    sizes: dict[str, dict[int, Spread]]
    bytes_per_s: Spread
    data_sheet: dict[str, Any] | None

    def of_precision(self, kind: str, precision: str) -> float | None:
        """The peak that towers of that precision are held against; None: no product of that type was measured.

        Float16 towers are held against bfloat16, as is customary; both run on the same tensor cores. A GPU without
        bfloat16 holds them against float16. ONNX Runtime and torch compute them in float32 on a CPU.
        """
        if precision == "int8":
            return None
        if kind == "cpu" or precision != "float16":
            return self.flops["float32"].median
        return self.flops["bfloat16" if "bfloat16" in self.flops else "float16"].median

    def to_dict(self) -> dict[str, Any]:
        """For the result."""
        return asdict(self)


def measure_peaks(device: Device, rounds: int, seconds: float) -> Peaks:
    """Measure `device`; float32 without TensorFloat-32, as the towers are run."""
    dtypes = [dtype for dtype in DTYPES[device.kind] if device.multiplies(dtype)]
    sizes = {dtype: _products(device, dtype, SIZES[device.kind], rounds, seconds) for dtype in dtypes}
    best = {dtype: max(tried.values(), key=lambda one: one.median) for dtype, tried in sizes.items()}
    return Peaks(best, sizes, _copies(device, rounds, seconds), data_sheet(device.name))


def _products(device: Device, dtype: str, sizes: Sequence[int], rounds: int, seconds: float) -> dict[int, Spread]:
    """Operations a second of [n, n] x [n, n], 2 n³ operations, for every n that fits into the memory."""
    product = _product_of_torch if device.kind == "cuda" else _product_of_onnxruntime
    rates: dict[int, Spread] = {}
    for size in sizes:
        try:
            once = measure(product(dtype, size), device.clock, rounds, seconds)
        except (RuntimeError, MemoryError) as error:
            if rates and is_out_of_memory(error):
                break
            raise
        rates[size] = _rate(2 * size**3, once)
    device.release()
    return rates


def _product_of_torch(dtype: str, size: int) -> Work:
    import torch

    # Random: of zeros a GPU draws less power, and so runs faster than on any real data.
    left, right = (torch.randn(size, size, device="cuda").to(getattr(torch, dtype)) for _ in range(2))
    return partial(torch.mm, left, right, out=torch.empty_like(left))


def _product_of_onnxruntime(dtype: str, size: int) -> Work:
    """On a CPU its products are faster than torch's and numpy's; the right one is a weight, as those of towers are."""
    import onnxruntime as ort
    from onnx import helper, numpy_helper

    left, right = (np.random.default_rng(0).standard_normal((size, size)).astype(dtype) for _ in range(2))
    kind = helper.np_dtype_to_tensor_dtype(right.dtype)
    given, made = (helper.make_tensor_value_info(name, kind, [size, size]) for name in ("left", "product"))
    node = helper.make_node("MatMul", ["left", "right"], ["product"])
    graph = helper.make_graph([node], "product", [given], [made], [numpy_helper.from_array(right, "right")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return partial(session.run, None, {"left": left})


def _copies(device: Device, rounds: int, seconds: float) -> Spread:
    import torch

    given = torch.ones(COPY_BYTES[device.kind] // 4, device=device.kind)
    taken = torch.empty_like(given)
    once = measure(lambda: taken.copy_(given), device.clock, rounds, seconds)
    return _rate(2 * COPY_BYTES[device.kind], once)


def _rate(amount: float, seconds: Spread) -> Spread:
    return Spread(amount / seconds.median, amount / seconds.highest, amount / seconds.lowest)


def data_sheet(name: str) -> dict[str, Any] | None:
    """What the maker promises of the GPU of that name."""
    table = json.loads(_DATA_SHEETS.read_text(encoding="utf-8"))
    for gpu in table["gpus"]:
        if re.search(gpu["pattern"], name):
            return _sheet(gpu["tflops"], gpu, table["source"])
    return None


def claimed_peaks(name: str) -> list[dict[str, Any]]:
    """What is said of the GPU of that name: its data sheet; where sources disagree, every claim; else nothing."""
    if sheet := data_sheet(name):
        return [sheet]
    table = json.loads(_DATA_SHEETS.read_text(encoding="utf-8"))
    disputed = [gpu for gpu in table["disputed"] if re.search(gpu["pattern"], name)]
    return [_sheet(tflops, gpu, "sources disagree") for gpu in disputed for tflops in gpu["tflops"]]


def _sheet(tflops: float, gpu: dict[str, Any], source: str) -> dict[str, Any]:
    return {"flops": tflops * 1e12, "bytes_per_s": gpu["gb_per_s"] * 1e9, "source": source}
