"""What a repository has otherwise, or more, once NVIDIA DALI decodes; the ensembles stay as they are."""

from __future__ import annotations

import json

from tritonclient.grpc.model_config_pb2 import ModelConfig

from tritonclip_export.errors import SpecError
from tritonclip_export.repository.templates import templates
from tritonclip_export.settings import DALI, Settings
from tritonclip_export.spec import ImageSpec

DECODER = "preprocess_dali"
_ROUTER = "dali_router.py"
_IMAGES = f"{DECODER}/1/images.json"
_AS_CHECKED_IN = ("preprocess/1/clip_dali.py", f"preprocess/1/{_ROUTER}", f"{DECODER}/1/dali.py")
# What goes when the CPU decodes again, the whole folder of the decoder with it: Triton takes every folder for a model.
DALI_ONLY = (*_AS_CHECKED_IN[:2], DECODER)


def require_dali(image: ImageSpec, settings: Settings) -> None:
    """Refuse what DALI's pipeline cannot make.

    Raises:
        SpecError: images of many sizes (NaFlex), where DALI is to decode.
    """
    if settings.preprocess == DALI and image.resize_mode == "naflex":
        raise SpecError(
            "--preprocess dali with a NaFlex tower, whose images have many sizes; DALI makes images of one size; "
            "give --preprocess cpu"
        )


def route(router: ModelConfig, settings: Settings) -> None:
    """Let `router`, the config of `preprocess`, send images to DALI, or decode all of them itself."""
    router.default_model_filename = _ROUTER if settings.preprocess == DALI else ""


def decoder_config(template: ModelConfig, image: ImageSpec, settings: Settings) -> ModelConfig:
    """`template`, the checked-in config of the decoder, for these images."""
    decoder = ModelConfig()
    decoder.CopyFrom(template)
    decoder.max_batch_size = settings.image_batch
    decoder.output[0].dims[:] = [image.height, image.width, 3]
    decoder.parameters["num_threads"].string_value = str(settings.preprocess_threads)
    return decoder


def dali_files(image: ImageSpec, settings: Settings) -> dict[str, bytes]:
    """The files beside the configs that a repository needs for DALI, by their paths in it."""
    # open_clip resizes to a target that is not square with its default filter.
    always_bicubic = image.resize_mode == "shortest" and image.height != image.width
    images = {
        "size": [image.height, image.width],
        "interpolation": "bicubic" if always_bicubic else image.interpolation,
        "fill_color": list(image.fill_color),
        "batch_size": settings.image_batch,
        "threads": settings.preprocess_threads,
    }
    checked_in = {path: (templates() / path).read_bytes() for path in _AS_CHECKED_IN}
    return {**checked_in, _IMAGES: (json.dumps(images) + "\n").encode()}
