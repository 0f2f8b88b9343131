"""Which file of a directory of PEFT's holds the weights."""

from __future__ import annotations

from pathlib import Path

from tritonclip_export.errors import AdapterError

WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")


def find_weights(folder: Path) -> Path:
    """PEFT's file of weights in `folder`."""
    found = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if found is None:
        raise AdapterError(f"{folder} has none of {', '.join(WEIGHT_FILES)}; save the adapter again with PEFT.")
    return found
