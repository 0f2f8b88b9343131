"""Files of diffusion models hold LoRAs of several text encoders; a CLIP checkpoint is one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

from tritonclip_export.adapters.lora.adapter import Adapter
from tritonclip_export.adapters.lora.formats.files import AdapterFile, Options, require_no_more
from tritonclip_export.errors import AdapterError
from tritonclip_export.frameworks import torch

Parts = dict[str, torch.Tensor]
# Encoder, module in `CLIPModel` and part of it; or another model's; or None for what has no place in the format.
Place = tuple[str, str, str] | Literal["other"] | None


def sort_encoders(
    file: AdapterFile,
    place: Callable[[str], Place],
    format: str,  # noqa: A002 - what it is called everywhere
) -> tuple[dict[str, dict[str, Parts]], int]:
    """The tensors by encoder, module and part, and how many are of other models.

    Raises:
        AdapterError: a tensor has no place.
    """
    places = {key: place(key) for key in file.tensors}
    strange = [key for key, found in places.items() if found is None]
    require_no_more(strange, f"a LoRA of CLIP's text tower in {format}'s format", file.path)
    encoders: dict[str, dict[str, Parts]] = {}
    for key, found in places.items():
        if found is not None and found != "other":
            encoder, module, part = found
            encoders.setdefault(encoder, {}).setdefault(module, {})[part] = file.tensors[key]
    return encoders, list(places.values()).count("other")


def one_of_several(
    adapters: Mapping[str, Adapter],
    file: AdapterFile,
    options: Options,
    format: str,  # noqa: A002 - what it is called everywhere
) -> Adapter:
    """The only adapter, the one that `options` chooses, or one that leaves the choice to the model it meets.

    Raises:
        AdapterError: there is none, or none of the chosen name.
    """
    if not adapters:
        raise AdapterError(
            f"{file.path} holds no LoRA of a CLIP text encoder, only of other models; there is nothing to merge."
        )
    if options.choice is not None:
        if options.choice not in adapters:
            raise AdapterError(
                f"{file.path} has no text encoder {options.choice!r}; allowed: "
                f"{', '.join(f'{format}:{name}' for name in adapters)}."
            )
        return adapters[options.choice]
    first = next(iter(adapters.values()))
    if len(adapters) == 1:
        return first
    return replace(first, tensors={}, choices=tuple((f"{format}:{name}", each) for name, each in adapters.items()))
