"""What an export is measured against: the probes, and their embeddings by the library that owns the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tritonclip_export.adapters.graph import GraphAdapter
from tritonclip_export.adapters.lora import MergeResult
from tritonclip_export.adapters.lora.compose import Composition
from tritonclip_export.adapters.read import Adapters
from tritonclip_export.checkpoints.checkpoint import Checkpoint
from tritonclip_export.errors import CheckpointError
from tritonclip_export.frameworks import torch
from tritonclip_export.parity.comparison import Array
from tritonclip_export.parity.probes import Probes
from tritonclip_export.parity.reference import Reference, ReferenceUnavailable, require_complete, unmerged_reference


@dataclass(frozen=True)
class Gate:
    """What an export has to reproduce.

    Attributes:
        expected: image and text embeddings of the probes, in float32 PyTorch.
        reference: what computed them.
        caveat: as in `parity.ParityReport`.
    """

    probes: Probes
    expected: tuple[Array, Array]
    reference: str
    caveat: str | None = None


def unmerged_gate(checkpoint: Checkpoint, adapters: Adapters, probes: Probes, how: Composition) -> Gate | str:
    """The gate of the checkpoint with its adapters beside the weights, or why none can run.

    Raises:
        CheckpointError: the weights do not fit their config, or the towers' embeddings have two lengths.
        AdapterError: an adapter lacks tensors.
    """
    try:
        if adapters.merged and how.method != "sum":
            raise ReferenceUnavailable(f"PEFT has no unmerged forward for {how.method}. The merge itself is possible.")
        reference = unmerged_reference(
            checkpoint.model_cfg, checkpoint.state_dict, adapters.merged, adapters.graph_adapters
        )
    except ReferenceUnavailable as error:
        # Only the words: the error would keep the model alive.
        why = str(error)
    else:
        return _gate(reference, probes, reference.description)
    require_complete(checkpoint.model_cfg, checkpoint.state_dict, [adapter for adapter, _ in adapters.merged])
    return why


def merged_gate(
    checkpoint: Checkpoint, merged: MergeResult, graph_adapters: Sequence[GraphAdapter], probes: Probes, why: str
) -> Gate:
    """The gate of the merged weights, where `why` names the reason that nothing runs unmerged."""
    reference = unmerged_reference(checkpoint.model_cfg, merged.state_dict, [], graph_adapters)
    return replace(_gate(reference, probes, f"{reference.description} with the merged weights"), caveat=why)


def _gate(reference: Reference, probes: Probes, description: str) -> Gate:
    with torch.no_grad():
        images = reference.encode_image(probes.pixel_values).numpy()
        texts = reference.encode_text(probes.input_ids).numpy()
    if images.shape[1] != texts.shape[1]:
        raise CheckpointError(
            f"the image tower gives {images.shape[1]} values and the text tower {texts.shape[1]}; give a checkpoint "
            "whose towers were trained together, with its own config"
        )
    return Gate(probes, (images, texts), description)
