"""Tells from the files which method an adapter is, and reads it or says why it cannot be served."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from tritonclip_export.adapters.graph.clip_adapter import RATIO, is_clip_adapter, read_clip_adapter
from tritonclip_export.adapters.graph.files import read_json, read_tensors
from tritonclip_export.adapters.graph.graph_adapter import GraphAdapter
from tritonclip_export.adapters.graph.hub_adapters import read_bottleneck, read_fusion
from tritonclip_export.adapters.graph.hub_files import ADAPTER_CONFIG, FUSION_CONFIG, read_hub_folder
from tritonclip_export.adapters.graph.hub_merge import read_merge
from tritonclip_export.adapters.graph.prompts import is_prompts, read_prompts
from tritonclip_export.checkpoints.weights import SUFFIXES
from tritonclip_export.errors import AdapterError

_KNOWN = "AdapterHub bottleneck adapters, AdapterFusion, LoRA and (IA)^3, CLIP-Adapter, VPT, MaPLe's image prompts"
# Methods under which an embedding needs both inputs, or no embedding of any text exists.
_NO_TWO_TOWERS = {
    r"(^|\.)meta_net\.": "CoCoOp adds a prompt made from the image to every text, so the text tower depends on the "
    "image and each image needs all texts encoded again; train CoOp or CLIP-Adapter instead",
    r"(?i)adapter.*(cross|joint|multi_?modal).*attn|(cross|joint|multi_?modal).*(attn.*)?adapter": "its attention "
    "joins both towers, so neither embedding exists without the other input; use it to re-rank what the towers found",
}
_WEIGHTS_FILE = re.compile(r"\.(pth|pt|bin|safetensors)")
# Constants of CoOp's fixed classes; MaPLe keeps them too, beside prompts of the image.
_CLASS_TOKENS = r"(^|\.)token_(prefix|suffix)$"
_REFUSED_ARCHITECTURES = {
    "union": "a union of methods is not read by this version; save each as an adapter of its own",
    "prefix_tuning": "its prefixes are keys and values of every layer and not read by this version; train VPT or LoRA",
    "prompt_tuning": "the library does not run it on CLIP; train VPT or CoOp",
    "reft": "interventions at token positions are not read by this version; train a bottleneck adapter or LoRA",
    "mtl_lora": "it needs the task of every input",
}


def is_graph_adapter(path: Path | str) -> bool:
    """Whether `path` is in a format of this package, one that it refuses included; anything else may be a LoRA."""
    path = Path(path)
    if path.is_dir() and (path / FUSION_CONFIG).is_file():
        return True
    if path.is_dir() and (path / ADAPTER_CONFIG).is_file():
        raw = read_json(path / ADAPTER_CONFIG)
        return "peft_type" not in raw and "config" in raw
    file = _weights_file(path)
    if file is None:
        return False
    try:
        names = read_tensors(file)
    except AdapterError:
        # Names that no other reader takes, such as dassl's model.pth.tar-50; this one says what is wrong.
        return file.suffix not in SUFFIXES and _WEIGHTS_FILE.search(file.name) is not None
    return is_clip_adapter(names) or is_prompts(names) or _refusal(names) is not None or _any(_CLASS_TOKENS, names)


def read_graph_adapter(path: Path | str, *, ratio: float = RATIO) -> GraphAdapter:
    """Read an adapter that changes the graph; the format is recognized from the files.

    Args:
        path: a folder that AdapterHub saved (an adapter; a fusion, with its adapters in it or beside it), or a file
            of weights, or the folder with that one file.
        ratio: the share of a CLIP-Adapter in the features, 0 to 1.

    Raises:
        AdapterError: it cannot be read, is of no known format, or cannot be served; says why.
    """
    path = Path(path)
    if not path.exists():
        raise AdapterError(f"{path} does not exist; give a folder or file of {_KNOWN}")
    if (path / FUSION_CONFIG).is_file():
        return read_fusion(path)
    if (path / ADAPTER_CONFIG).is_file():
        return _read_hub(path)
    file = _weights_file(path)
    if file is None:
        raise AdapterError(f"{path} holds no adapter, or several files of weights; give one of {_KNOWN}")
    tensors = read_tensors(file)
    reason = _refusal(tensors)
    if reason is not None:
        raise AdapterError(f"{path} cannot be served: {reason}")
    if is_prompts(tensors):
        return read_prompts(path, file, tensors)
    if _any(_CLASS_TOKENS, tensors):
        raise AdapterError(
            f"{path} is CoOp's, which learned the prompt of fixed classes and leaves both towers as they are: their "
            "text features are constants; give it to `tritonclip classifier coop`"
        )
    if is_clip_adapter(tensors):
        return read_clip_adapter(path, file, tensors, ratio)
    raise AdapterError(f"{path} is of no known format (first tensor: {next(iter(tensors))}); give one of {_KNOWN}")


def _read_hub(path: Path) -> GraphAdapter:
    folder = read_hub_folder(path, ADAPTER_CONFIG)
    architecture = folder.config.get("architecture")
    if architecture in _REFUSED_ARCHITECTURES:
        raise AdapterError(
            f"{path} is AdapterHub's {architecture}, which cannot be served: {_REFUSED_ARCHITECTURES[architecture]}"
        )
    if architecture == "lora":
        return read_merge(folder)
    if architecture not in (None, "bottleneck"):
        raise AdapterError(f"{path} is AdapterHub's {architecture!r}, which this version does not know; give {_KNOWN}")
    return read_bottleneck(folder)


def _weights_file(path: Path) -> Path | None:
    """The file itself, or the one file of weights in a folder (dassl writes a text file `checkpoint` beside it)."""
    if path.is_file():
        return path
    found = [file for file in path.glob("*") if file.is_file() and _WEIGHTS_FILE.search(file.name)]
    return found[0] if len(found) == 1 else None


def _refusal(names: Iterable[str]) -> str | None:
    names = list(names)
    return next((reason for grammar, reason in _NO_TWO_TOWERS.items() if _any(grammar, names)), None)


def _any(grammar: str, names: Iterable[str]) -> bool:
    return any(re.search(grammar, name) for name in names)
