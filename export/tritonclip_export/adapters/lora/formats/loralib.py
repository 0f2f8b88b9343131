"""Microsoft's loralib (https://github.com/microsoft/LoRA): a state dict with lora_A and lora_B beside the weights."""

from __future__ import annotations

import re
from collections.abc import Mapping

from tritonclip_export.adapters.lora.adapter import Adapter
from tritonclip_export.adapters.lora.formats.files import AdapterFile, Options
from tritonclip_export.adapters.lora.formats.layers import Layer, dense, low_rank, make_adapter
from tritonclip_export.adapters.lora.formats.native import hf_layers, hf_plain, is_fused, split_groups, without_buffers
from tritonclip_export.adapters.lora.naming.namespace import recognize
from tritonclip_export.errors import AdapterError
from tritonclip_export.frameworks import torch

_KEY = re.compile(r"(?P<module>.+)\.(?P<part>lora_[AB])$")
_EMBEDDING = re.compile(r"(.*\.)?token_embedding$")
_CONVOLUTION = re.compile(r"(.*\.)?(conv\d|patch_embed\.proj|patch_embedding)$")
# Their input are the three colors, which tells the size of their kernel.
_STEM = re.compile(r"(visual\.conv1|.*\.patch_embed\.proj|.*\.patch_embedding)$")

Parts = dict[str, torch.Tensor]


def read(file: AdapterFile, options: Options) -> Adapter:
    """scale = alpha / r; alpha is a constructor's argument that the file does not hold."""
    if options.alpha is None:
        raise AdapterError(
            f"{file.path} is a file of loralib, which does not store alpha; give the lora_alpha of the training "
            "(--lora-alpha; loralib's default is 1)."
        )
    modules, plain = split(file)
    layers = {name: _layer(name, parts, plain, file, options) for name, parts in modules.items()}
    return native_adapter(layers, plain, file, "loralib")


def split(file: AdapterFile) -> tuple[dict[str, Parts], dict[str, torch.Tensor]]:
    """lora_A and lora_B by their module, and all other tensors by their name in the plain model."""
    modules: dict[str, Parts] = {}
    plain: dict[str, torch.Tensor] = {}
    for key, tensor in file.tensors.items():
        if match := _KEY.match(key):
            modules.setdefault(match["module"], {})[match["part"]] = tensor
        else:
            plain[key] = tensor
    # A convolution is a module of its own inside the adapted one.
    inner = {f"{name}.conv.": f"{name}." for name in modules}
    return modules, {_renamed(name, inner): tensor for name, tensor in without_buffers(plain).items()}


def native_adapter(
    layers: Mapping[str, Layer],
    plain: Mapping[str, torch.Tensor],
    file: AdapterFile,
    format: str,  # noqa: A002 - what it is called everywhere
) -> Adapter:
    """Layers and whole tensors by any CLIP's names, as an adapter in Hugging Face's wherever those exist."""
    renamed = hf_layers(layers)
    if renamed is not None:
        return make_adapter(file, "hf", renamed, format, plain=hf_plain(plain))
    unnamed = [name for name in layers if re.search(r"resblocks\.\d+\.attn\.", name)]
    if unnamed:
        raise AdapterError(
            f"{file.path} adapts both the attention of open_clip's own blocks ({unnamed[0]}) and modules of another "
            "kind of tower; this version merges one kind at a time. Save each tower's LoRA in a file of its own."
        )
    namespace = recognize(layers, None, file.path)
    return make_adapter(file, namespace, layers, format, plain=plain)


def linear(name: str, parts: Parts, options: Options, file: AdapterFile) -> Layer:
    """A Linear, MergedLinear or Embedding layer; alpha is 1 where `options` has none."""
    count = max(1, parts["lora_A"].shape[0] // parts["lora_B"].shape[1]) if len(parts) == 2 else 1
    alpha = 1.0 if options.alpha is None else options.alpha
    if count == 1:
        a, b = low_rank(name, parts, ("lora_A", "lora_B"), file)
    else:
        a, b = parts["lora_A"].float(), parts["lora_B"].float()
    _check_rank(name, b.shape[1], options, file)
    layer = Layer(a, b, alpha / b.shape[1], embedding=bool(_EMBEDDING.match(name)))
    return split_groups(name, layer, options.choice, file.path, "loralib") if is_fused(name) else layer


def _layer(name: str, parts: Parts, plain: Mapping[str, torch.Tensor], file: AdapterFile, options: Options) -> Layer:
    if not _CONVOLUTION.match(name):
        return linear(name, parts, options, file)
    a, b = low_rank(name, parts, ("lora_A", "lora_B"), file)
    kernel = _kernel(name, a, plain, file, options)
    shape = (b.shape[0] // kernel, a.shape[1] // kernel, kernel, kernel)
    rank = a.shape[0] // kernel
    if options.alpha is None or (rank * kernel, shape[0] * kernel, shape[1] * kernel) != (
        a.shape[0],
        b.shape[0],
        a.shape[1],
    ):
        raise AdapterError(
            f"{name} in {file.path} has lora_A {tuple(a.shape)} and lora_B {tuple(b.shape)}, which no convolution "
            f"with kernel {kernel} has; check the rank that was given."
        )
    return dense((b @ a).reshape(shape) * (options.alpha / rank))


def _kernel(name: str, a: torch.Tensor, plain: Mapping[str, torch.Tensor], file: AdapterFile, options: Options) -> int:
    weight = plain.get(f"{name}.weight")
    if weight is not None:
        return weight.shape[-1]
    if options.rank is not None:
        return max(1, a.shape[0] // options.rank)
    if _STEM.match(name):
        return max(1, a.shape[1] // 3)
    raise AdapterError(
        f"{name} in {file.path} is a convolution, and without its weight nothing tells the size of its kernel; give "
        "the rank of the training, or save the whole state dict."
    )


def _check_rank(name: str, rank: int, options: Options, file: AdapterFile) -> None:
    if options.rank is not None and options.rank != rank:
        raise AdapterError(f"{name} in {file.path} has rank {rank}, not {options.rank}; leave the rank out.")


def _renamed(name: str, inner: Mapping[str, str]) -> str:
    found = next((old for old in inner if name.startswith(old)), None)
    return name if found is None else inner[found] + name.removeprefix(found)
