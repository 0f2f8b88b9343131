"""Whatever is given as `--adapter`: what can be folded into the weights, and what travels inside the graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tritonclip_export.adapters.graph import GraphAdapter, is_graph_adapter, read_graph_adapter
from tritonclip_export.adapters.lora import read_adapter
from tritonclip_export.adapters.lora.config import CONFIG_FILE
from tritonclip_export.adapters.lora.task_vector import is_checkpoint, read_task_vector
from tritonclip_export.adapters.lora.unmerged import AnyAdapter
from tritonclip_export.errors import AdapterError


@dataclass(frozen=True)
class Adapters:
    """What was read.

    Attributes:
        merged: LoRAs, other methods of PEFT and task vectors, each with its weight.
        graph_adapters: what adds operators to a tower.
    """

    merged: list[tuple[AnyAdapter, float]]
    graph_adapters: list[GraphAdapter]


def read_adapters(
    given: Sequence[tuple[Path, float]],
    *,
    alpha: float | None = None,
    rank: int | None = None,
    file_format: str | None = None,
    may_be_partial: bool = False,
) -> Adapters:
    """Read every path of `given`; a directory with a whole checkpoint is a task vector.

    Args:
        alpha, rank, file_format: of LoRA files that do not say them.
        may_be_partial: whether PEFT's directories may lack tensors for modules that they name.

    Raises:
        AdapterError: a path that is no adapter, a broken file, or a weight for what takes none.
    """
    found = Adapters([], [])
    read_as_told = partial(read_adapter, alpha=alpha, rank=rank, format=file_format)
    # A directory of PEFT's says everything itself; beside others, which may need the options, it goes without.
    says_itself = [(path / CONFIG_FILE).is_file() for path, _ in given]
    for (path, weight), by_itself in zip(given, says_itself, strict=True):
        # First, because detecting a graph adapter reads its weights.
        if is_checkpoint(path):
            found.merged.append((read_task_vector(path), weight))
        elif is_graph_adapter(path):
            found.graph_adapters.append(_read_graph_adapter(path, weight))
        else:
            read = read_adapter if by_itself and not all(says_itself) else read_as_told
            found.merged.append((replace(read(path), may_be_partial=may_be_partial), weight))
    return found


def _read_graph_adapter(path: Path, weight: float) -> GraphAdapter:
    if weight != 1:
        raise AdapterError(f"{path} changes the graph and takes no weight, {weight} was given; leave it out.")
    return read_graph_adapter(path)
