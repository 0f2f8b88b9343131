"""Which tool wrote a file, by its tensors' names, and its reader."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from tritonclip_export.adapters.lora.adapter import Adapter
from tritonclip_export.adapters.lora.formats import clip_lora, diffusers, kohya, loraclip, loralib, peft_file
from tritonclip_export.adapters.lora.formats.files import AdapterFile, Options, load
from tritonclip_export.errors import AdapterError

_READERS: dict[str, Callable[[AdapterFile, Options], Adapter]] = {
    "clip-lora": clip_lora.read,
    "kohya": kohya.read,
    "diffusers": diffusers.read,
    "loraclip": loraclip.read,
    "loralib": loralib.read,
    "peft": peft_file.read,
}
FORMATS = tuple(_READERS)

# A name that only the files of one tool have.
_SIGNS = {
    "clip-lora": re.compile(r"layer_\d+\.\w+\.w_lora_[AB]$"),
    "kohya": re.compile(r"lora_(te\d?|unet)_"),
    "diffusers": re.compile(r"(text_encoder(_\d)?|unet|transformer\.(single_)?transformer_blocks)\..*lora"),
    "loraclip": re.compile(r"(.+\.in_proj_weight_lora_[AB]|lora_text_projection\..+)$"),
}
# Names that those files may have too.
_COMMON_SIGNS = {
    "loralib": re.compile(r".+\.lora_[AB]$"),
    "peft": re.compile(r".+\.lora_(A|B|embedding_A|embedding_B)\.|base_model\.model\."),
}


def read_file(
    path: Path,
    *,
    alpha: float | None = None,
    rank: int | None = None,
    format: str | None = None,  # noqa: A002 - what it is called everywhere
) -> Adapter:
    """Read the adapter file `path`.

    Args:
        alpha, rank: LoRA's, where the file does not store them.
        format: one of FORMATS instead of the one that the names tell; ":CHOICE" behind it takes one of several
            things in the file ("kohya:te1", "diffusers:text_encoder_2", "peft:NAME", "loralib:qv").

    Raises:
        AdapterError: the file is broken, its format is unknown or ambiguous, or something it needs is not given.
    """
    name, _, choice = (format or "").partition(":")
    if name and name not in _READERS:
        raise AdapterError(f"the adapter format is {name!r}; allowed: {', '.join(FORMATS)}.")
    file = load(path)
    name = name or _recognize(file.tensors, path)
    return _READERS[name](file, Options(alpha, rank, choice or None))


def _recognize(keys: Iterable[str], path: Path) -> str:
    keys = list(keys)
    found = _matching(_SIGNS, keys) or _matching(_COMMON_SIGNS, keys)
    if len(found) == 1:
        return found[0]
    shown = ", ".join(keys[:3]) or "none"
    if found:
        raise AdapterError(
            f"{path} has names of {' and of '.join(found)} (first: {shown}); say which it is by --adapter-format "
            f"{' or '.join(found)}."
        )
    raise AdapterError(
        f"{path} has no names of a LoRA that this version reads (first: {shown}); its formats: {', '.join(FORMATS)}."
    )


def _matching(signs: dict[str, re.Pattern[str]], keys: list[str]) -> list[str]:
    return [name for name, sign in signs.items() if any(map(sign.match, keys))]
