"""What a merge did, for people and for the manifest."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from tritonclip_export.adapters.lora.compose import Composition


@dataclass(frozen=True)
class Skipped:
    """A key of an adapter that changes nothing in the trained model, and so nothing in the merged one."""

    key: str
    reason: str


@dataclass(frozen=True)
class AdapterReport:
    """What one adapter did.

    Attributes:
        name, path: its directory.
        method: "LORA", another of PEFT's methods, or "task vector".
        format: of the file: "peft", one of another tool, or "checkpoint".
        weight: the factor that its difference was multiplied with.
        namespace: "open_clip" or "hf".
        folded: how many modules had a delta folded in; for a task vector, how many tensors differ.
        replaced: tensors whose values (or, for token rows, some rows) were replaced, by the adapter's names.
        skipped: keys that PEFT's forward never executes.
        relative_norm: ||weight * delta|| / ||W|| over the tensors it changed, before TIES or DARE drop values.
        warnings: what a person should know.
    """

    name: str
    path: str
    method: str
    format: str
    weight: float
    namespace: str
    folded: int
    replaced: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    relative_norm: float
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class MergeReport:
    """One entry per adapter, in the order they were given, and how they became one change."""

    adapters: tuple[AdapterReport, ...] = ()
    composition: Composition = field(default_factory=Composition)

    @property
    def warnings(self) -> tuple[str, ...]:
        """All adapters' warnings, each with the adapter's name."""
        return tuple(f"{entry.name}: {text}" for entry in self.adapters for text in entry.warnings)

    def to_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)
