"""A fully fine-tuned checkpoint as an adapter: what it differs from the base by (https://arxiv.org/abs/2212.04089)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tritonclip_export.adapters.lora.config import CONFIG_FILE
from tritonclip_export.adapters.lora.naming.namespace import Namespace
from tritonclip_export.checkpoints.key_mapping import canonical
from tritonclip_export.checkpoints.load import load_checkpoint
from tritonclip_export.checkpoints.sources import HF_CONFIG, HF_SHARDS, HF_WEIGHTS, OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS
from tritonclip_export.errors import AdapterError
from tritonclip_export.frameworks import torch

# How sharp the probabilities are is no direction in feature space: sums of it leave the range that training keeps
# to, and TIES and DARE would drop or multiply it. The base's is served.
SCORING = ("logit_scale", "logit_bias")


@dataclass(frozen=True)
class TaskVector:
    """A fine-tuned checkpoint; its difference to the base is added with a weight, its scale.

    Attributes:
        path: the directory it was read from.
        namespace: "open_clip" or "hf", the library whose names its weights have.
        tensors: its weights, in its own dtype.
        files: what was read, for hashing.
    """

    path: Path
    namespace: Namespace
    tensors: dict[str, torch.Tensor]
    files: tuple[Path, ...]

    @property
    def name(self) -> str:
        """The name of its directory."""
        return self.path.resolve().name


def is_checkpoint(path: Path) -> bool:
    """Whether `path` is a directory with a whole model, not with an adapter."""
    if (path / CONFIG_FILE).is_file():
        return False
    return any((path / name).is_file() for name in (OPEN_CLIP_CONFIG, HF_CONFIG))


def read_task_vector(path: Path) -> TaskVector:
    """Read the fine-tuned checkpoint in the directory `path` (open_clip's or Hugging Face's).

    Raises:
        CheckpointError: it is no checkpoint that this version exports.
    """
    checkpoint = load_checkpoint(str(path))
    namespace: Namespace = "hf" if "hf_config" in checkpoint.model_cfg else "open_clip"
    patterns = (OPEN_CLIP_CONFIG, HF_CONFIG, *OPEN_CLIP_WEIGHTS, *HF_WEIGHTS, *HF_SHARDS)
    files = tuple(file for pattern in patterns for file in sorted(path.glob(pattern)))
    return TaskVector(path, namespace, checkpoint.state_dict, files)


def check_task_vector(vector: TaskVector, state_dict: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """The base's names of its features' weights, to the vector's names.

    Raises:
        AdapterError: the two checkpoints do not have the same tensors of the same shapes, or a value is not finite.
    """
    tuned = {canonical(name): name for name in vector.tensors}
    base = {canonical(name): name for name in state_dict}
    problems = [f"missing {name}" for name in base if name not in tuned]
    problems += [f"unknown {name}" for name in tuned if name not in base]
    shared = [name for name in base if name in tuned]
    for name in shared:
        shapes = tuple(vector.tensors[tuned[name]].shape), tuple(state_dict[base[name]].shape)
        if shapes[0] != shapes[1]:
            problems.append(f"{name} is {shapes[0]}, not {shapes[1]}")
        elif not torch.isfinite(vector.tensors[tuned[name]]).all():
            problems.append(f"{name} holds NaN or infinity")
    if problems:
        raise AdapterError(
            f"{vector.path} is not a fine-tuning of this checkpoint: {'; '.join(problems[:3])} ({len(problems)} in "
            "all). Give the checkpoint that it was tuned from."
        )
    return {base[name]: tuned[name] for name in shared if name not in SCORING}


def scoring_note(vector: TaskVector, state_dict: Mapping[str, torch.Tensor]) -> str | None:
    """What is left out of the difference, or None where the scoring was not changed."""
    changed = [
        f"{name} is {vector.tensors[name].item():.4g} there and {state_dict[name].item():.4g} in the base"
        for name in SCORING
        if name in vector.tensors and name in state_dict and vector.tensors[name].item() != state_dict[name].item()
    ]
    return f"{'; '.join(changed)}; the base's is served, and no embedding depends on it" if changed else None
