"""Lets PEFT wrap a model with an adapter: from PEFT's own files, or from what another format was read as."""

from __future__ import annotations

import re
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tritonclip_export.adapters.lora.adapter import Adapter
from tritonclip_export.adapters.lora.config import CONFIG_FILE
from tritonclip_export.adapters.lora.naming.keys import sort_parts
from tritonclip_export.adapters.lora.peft.method import MethodAdapter
from tritonclip_export.errors import AdapterError
from tritonclip_export.frameworks import torch

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

PeftAdapter = Adapter | MethodAdapter
ADAPTER_NAME = "adapter"
_MISSING_KEYS = "Found missing adapter keys"


class ReferenceUnavailable(AdapterError):  # noqa: N818 - a state of PEFT, not a fault of the user
    """The adapters can be merged, but PEFT cannot run this combination unmerged to compare with."""


def load_with_peft(module: torch.nn.Module, adapter: PeftAdapter) -> PeftModel:
    """Wrap the modules of `module` in place; the adapter is called ADAPTER_NAME.

    Raises:
        ReferenceUnavailable: PEFT has no such LoRA.
        AdapterError: the adapter's directory lacks tensors.
    """
    from peft import PeftConfig, PeftModel

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if not _is_pefts_directory(adapter):
            peft_model = PeftModel(module, _lora_config(adapter), adapter_name=ADAPTER_NAME)
            _set_tensors(peft_model, adapter, ADAPTER_NAME)
            return peft_model
        config = PeftConfig.from_pretrained(str(adapter.path))
        # A task would select a wrapper that expects a language model's methods.
        config.task_type = None
        with _missing_key_named(adapter):
            peft_model = PeftModel.from_pretrained(
                module, adapter.path, adapter_name=ADAPTER_NAME, config=config, torch_device="cpu"
            )
    messages = [str(entry.message) for entry in caught if _MISSING_KEYS in str(entry.message)]
    _require_complete([key for message in messages for key in _missing_keys(message)], adapter)
    return peft_model


def add_with_peft(peft_model: PeftModel, adapter: PeftAdapter, name: str) -> None:
    """Wrap once more, with another adapter of the name `name`; raises as `load_with_peft`."""
    if _is_pefts_directory(adapter):
        with _missing_key_named(adapter):
            missing = peft_model.load_adapter(adapter.path, name, torch_device="cpu").missing_keys
        _require_complete(missing, adapter)
    else:
        peft_model.add_adapter(name, _lora_config(adapter))
        _set_tensors(peft_model, adapter, name)


def raised_by_peft(error: BaseException) -> bool:
    """Whether PEFT itself refused; an error from below PEFT, or from here, is a fault to be seen."""
    *_, (innermost, _line) = traceback.walk_tb(error.__traceback__)
    return str(innermost.f_globals.get("__name__")).split(".")[0] == "peft"


def _is_pefts_directory(adapter: PeftAdapter) -> bool:
    return (adapter.path / CONFIG_FILE).is_file()


def _lora_config(adapter: PeftAdapter) -> LoraConfig:
    """A LoraConfig of an adapter that has no adapter_config.json of its own."""
    from peft import LoraConfig

    assert isinstance(adapter, Adapter), adapter.path
    settings, parts = adapter.settings, sort_parts(adapter.tensors)
    if parts.token_rows or parts.replacements:
        raise ReferenceUnavailable(
            f"{adapter.path} replaces whole tensors beside its LoRA, and no adapter_config.json says which; PEFT "
            "cannot run it unmerged. The merge itself is possible."
        )
    modules = {module.trained for module in parts.low_rank if ".base_layer." not in module.trained}
    return LoraConfig(
        r=settings.r,
        lora_alpha=settings.lora_alpha,  # type: ignore[arg-type]  # PEFT divides it, whole or not
        use_rslora=settings.use_rslora,
        use_dora=settings.use_dora,
        lora_bias=settings.lora_bias,
        rank_pattern=dict(settings.rank_pattern),
        alpha_pattern=dict(settings.alpha_pattern),
        # One expression: in a list, a name would also match the ends of longer ones.
        target_modules="|".join(re.escape(module) for module in sorted(modules)),
    )


def _set_tensors(peft_model: PeftModel, adapter: PeftAdapter, name: str) -> None:
    from peft import set_peft_model_state_dict

    tensors = {f"base_model.model.{key}": tensor for key, tensor in adapter.tensors.items()}
    try:
        found: Any = set_peft_model_state_dict(peft_model, tensors, adapter_name=name)
    except RuntimeError as error:
        if "size mismatch" not in str(error):
            raise
        # The merge has checked all shapes, so this LoRA is one that PEFT does not have.
        raise ReferenceUnavailable(f"PEFT has no LoRA such as {adapter.path}'s: {str(error)[:300]}") from error
    _require_found([key for key in found.missing_keys if f".{name}" in key], adapter)
    _require_found(found.unexpected_keys, adapter)


@contextmanager
def _missing_key_named(adapter: PeftAdapter) -> Iterator[None]:
    """PEFT looks tensors of `modules_to_save` up without asking whether they are there."""
    try:
        yield
    except KeyError as error:
        if not raised_by_peft(error):
            raise
        raise AdapterError(
            f"{adapter.path} lacks {error.args[0]}, which its {CONFIG_FILE} asks for; copy or save the adapter again."
        ) from error


def _missing_keys(message: str) -> list[str]:
    """The names in PEFT's warning, which ends with a list of them."""
    return re.findall(r"'([^']+)'", message.partition(_MISSING_KEYS)[2])


def _require_complete(missing: Sequence[str], adapter: PeftAdapter) -> None:
    """PEFT itself leaves a module without tensors as it was, and warns."""
    if missing and not adapter.may_be_partial:
        total = len(missing) + len(adapter.tensors)
        raise AdapterError(
            f"{adapter.path} lacks {len(missing)} of the {total} tensors that its {CONFIG_FILE} asks for in this model "
            f"(first: {missing[0]}); copy or save the adapter again. If it was trained on part of the model "
            "only, add --allow-partial-adapter; the other modules then stay unchanged."
        )


def _require_found(missing: Sequence[str], adapter: PeftAdapter) -> None:
    if missing:
        raise ReferenceUnavailable(f"PEFT misses tensors in {adapter.path}: {missing[0][:300]}")
