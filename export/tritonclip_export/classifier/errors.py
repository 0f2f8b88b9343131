"""The error of baked classifiers."""

from __future__ import annotations

from tritonclip_export.errors import ExportError


class ClassifierError(ExportError):
    """The labels, prompts or weights of a classifier cannot be used with this model repository."""
