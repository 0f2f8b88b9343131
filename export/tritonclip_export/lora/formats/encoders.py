"""Files of diffusion models hold LoRAs of several text encoders; a CLIP checkpoint is one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tritonclip_export.errors import AdapterError
from tritonclip_export.lora.adapter import Adapter
from tritonclip_export.lora.formats.files import AdapterFile, Options


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
