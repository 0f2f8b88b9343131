"""The errors of an export, one tree.

ExportError               exit code 2: something given to the export is wrong
├── CheckpointError       the model cannot be read, or is not a CLIP that this version exports
├── AdapterError          the adapter cannot be read, or cannot be merged into this model
├── SpecError             the serving spec holds a value that the server cannot honor
├── RepositoryError       the output directory is taken, or is not a repository
├── EngineError           TensorRT cannot build an engine here, or the one there is cannot be used here
├── SignatureError        a key cannot be used, or a manifest is not signed by it
├── ClassifierError       the labels, prompts or weights of a classifier cannot be used with this repository
└── ParityError           exit code 5: the exported graph does not reproduce the checkpoint
"""

from __future__ import annotations


class ExportError(Exception):
    """Something given to the export is wrong; the message says what, what is allowed and what to do."""

    exit_code = 2


class CheckpointError(ExportError):
    """The model cannot be read, or is not a CLIP that this version exports."""


class AdapterError(ExportError):
    """The adapter cannot be read, or cannot be merged into this model."""


class SpecError(ExportError):
    """The serving spec holds a value that the server cannot honor."""


class RepositoryError(ExportError):
    """The output directory is taken, or is not a repository."""


class EngineError(ExportError):
    """TensorRT cannot build an engine here, or the one there is cannot be used here."""


class ClassifierError(ExportError):
    """The labels, prompts or weights of a classifier cannot be used with this model repository."""


class SignatureError(ExportError):
    """A key cannot be used, or a manifest is not signed by it."""


class ParityError(ExportError):
    """The exported graph does not reproduce the checkpoint; nothing was published."""

    exit_code = 5
