"""Encoded JPEG in, pixels out, on the GPU; Triton's DALI backend reads and serializes the pipeline below.

`steps` are two resizes and a cut, reckoned by `preprocess`: one axis after the other, with 8 bits in between, as
Pillow resizes. Cut outside the image, it is padded. Sizes, filter and colour are those of `images.json`.
"""

import json
from pathlib import Path
from typing import Any

from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.plugin.triton import autoserialize

IMAGES = json.loads(Path(__file__).with_name("images.json").read_text(encoding="utf-8"))
FILTER = {"bicubic": types.INTERP_CUBIC, "bilinear": types.INTERP_LINEAR}[IMAGES["interpolation"]]


@autoserialize
@pipeline_def(batch_size=IMAGES["batch_size"], num_threads=IMAGES["threads"], device_id=0)
def preprocess_dali(device: str = "mixed") -> Any:
    """`encoded` UINT8 [bytes] and `steps` FP32 [14] to UINT8 [H, W, 3]; `device` "cpu" needs no GPU."""
    encoded = fn.external_source(name="encoded", device="cpu", dtype=types.UINT8, ndim=1)
    steps = fn.external_source(name="steps", device="cpu", dtype=types.FLOAT, ndim=1)
    pixels = fn.decoders.image(
        encoded,
        device=device,
        output_type=types.RGB,
        # The image as it is stored: what EXIF says is done where the steps come from.
        adjust_orientation=False,
        # As on the CPU; chroma is what decoders differ in most.
        jpeg_fancy_upsampling=True,
        # Its threads are not the only ones here.
        affine=False,
    )
    for first in (0, 6):
        pixels = fn.resize(
            pixels,
            size=steps[first : first + 2],
            roi_start=steps[first + 2 : first + 4],
            roi_end=steps[first + 4 : first + 6],
            interp_type=FILTER,
            antialias=True,
            subpixel_scale=False,
        )
    return fn.slice(
        pixels,
        start=fn.cast(steps[12:14], dtype=types.INT32),
        shape=IMAGES["size"],
        axes=[0, 1],
        out_of_bounds_policy="pad",
        fill_values=IMAGES["fill_color"],
    )
