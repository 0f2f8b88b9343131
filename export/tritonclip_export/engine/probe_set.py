"""The gate's probes, made again from what a repository holds: the checkpoint need not be where engines are built."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritonclip_export.engine.boundary import Array
from tritonclip_export.parity.probes import gather, to_uint8, transform_images
from tritonclip_export.repository.classifier.text_tower import RepositoryTokenizer
from tritonclip_export.spec import ImageSpec, ServingSpec


@dataclass(frozen=True)
class ProbeSet:
    """What the engines are compared on.

    Attributes:
        pixels: uint8 [N, H, W, 3] or rows, see `naflex`.
        input_ids: int32 [M, context_length].
    """

    pixels: Array
    input_ids: Array


def read_probe_set(
    repository: Path, spec: ServingSpec, *, images: Path | None = None, texts: Path | None = None
) -> ProbeSet:
    """The probes of `probes.gather`.

    Raises:
        ExportError: the folder of images or the file of texts has nothing in it that can be used.
    """
    probes, captions = gather(images, texts)
    preprocess = _preprocess_cfg(spec.image)
    pixels = to_uint8(transform_images(list(probes.values()), preprocess), preprocess).numpy()
    # One of the built-in texts fills the context, so that all are padded to it.
    return ProbeSet(pixels, RepositoryTokenizer(repository).tokenize(captions)[0])


def _preprocess_cfg(image: ImageSpec) -> dict[str, Any]:
    """As a checkpoint has it: open_clip's own, or what `processors.hf_preprocess` makes, which crops by "floor"."""
    shared = {"mean": image.mean, "std": image.std, "interpolation": image.interpolation}
    shared |= {"resize_mode": image.resize_mode}
    if image.crop_offset == "round":
        return {**shared, "size": (image.height, image.width), "fill_color": image.fill_color}
    patches = {"patch_size": image.patch_size, "max_num_patches": image.max_num_patches}
    return {**shared, **patches, "size": image.height, "crop_offset": image.crop_offset, "to_rgb": image.to_rgb}
