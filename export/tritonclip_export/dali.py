"""Turns the model `preprocess` to NVIDIA DALI and back; the ensembles around it stay as they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tritonclip_export.configs import config_text, parse_config, read_config, templates
from tritonclip_export.errors import SpecError
from tritonclip_export.spec import ImageSpec

PREPROCESSES = ("cpu", "dali")
CONFIG = "preprocess/config.pbtxt"
_DECODER_CONFIG, _PICTURES = "preprocess_dali/config.pbtxt", "preprocess_dali/1/pictures.json"
_AS_CHECKED_IN = ("preprocess/1/clip_dali.py", "preprocess/1/dali_router.py", "preprocess_dali/1/dali.py")
# The files that only a repository with DALI has.
DALI_ONLY = (*_AS_CHECKED_IN, _DECODER_CONFIG, _PICTURES)
_ROUTER = "dali_router.py"
_RECORDED = "preprocess"


def require_dali(image: ImageSpec) -> None:
    """Refuse what DALI's pipeline cannot make.

    Raises:
        SpecError: pictures of many sizes (NaFlex).
    """
    if image.resize_mode == "naflex":
        raise SpecError(
            "--preprocess dali with a NaFlex tower, whose pictures have many sizes; DALI makes pictures of one size; "
            "give --preprocess cpu"
        )


def dali_files(image: ImageSpec, preprocess: str) -> dict[str, bytes]:
    """The files that a repository has otherwise, or more, once DALI decodes: by their paths in it.

    Args:
        preprocess: the text of the repository's preprocess/config.pbtxt.

    Raises:
        SpecError: DALI's pipeline cannot make such pictures.
        RepositoryError: `preprocess` is no model configuration.
    """
    require_dali(image)
    router = parse_config(preprocess, CONFIG)
    router.default_model_filename = _ROUTER
    threads = router.instance_group[0].count
    decoder = read_config(templates() / _DECODER_CONFIG)
    decoder.max_batch_size = router.max_batch_size
    decoder.output[0].dims[:] = [image.height, image.width, 3]
    decoder.parameters["num_threads"].string_value = str(threads)
    # open_clip resizes to a target that is not square with its default filter.
    always_bicubic = image.resize_mode == "shortest" and image.height != image.width
    pictures = {
        "size": [image.height, image.width],
        "interpolation": "bicubic" if always_bicubic else image.interpolation,
        "fill_color": list(image.fill_color),
        "batch_size": router.max_batch_size,
        "threads": threads,
    }
    return {
        **{path: (templates() / path).read_bytes() for path in _AS_CHECKED_IN},
        CONFIG: config_text(router).encode(),
        _DECODER_CONFIG: config_text(decoder).encode(),
        _PICTURES: (json.dumps(pictures) + "\n").encode(),
    }


def cpu_files(preprocess: str) -> dict[str, bytes]:
    """The files that a repository has otherwise once the CPU decodes again.

    Those of DALI_ONLY are to be removed, the folder preprocess_dali with them: Triton takes every folder for a model.

    Args:
        preprocess: the text of the repository's preprocess/config.pbtxt.

    Raises:
        RepositoryError: it is no model configuration.
    """
    config = parse_config(preprocess, CONFIG)
    config.ClearField("default_model_filename")
    return {CONFIG: config_text(config).encode()}


def recorded(manifest: Mapping[str, Any]) -> str:
    """One of PREPROCESSES, as a manifest has it; where it says nothing, the CPU decodes."""
    return str(manifest.get(_RECORDED, "cpu"))


def record(manifest: Mapping[str, Any], preprocess: str) -> dict[str, Any]:
    """`manifest` with one of PREPROCESSES written down; the CPU is not, so that nothing changes where it decodes."""
    others = {key: value for key, value in manifest.items() if key != _RECORDED}
    return others if preprocess == "cpu" else {**others, _RECORDED: preprocess}
