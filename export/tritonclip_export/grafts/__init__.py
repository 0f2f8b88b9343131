"""Adapters that add operators to a tower, so that no weights can hold them: they travel inside its ONNX."""

from tritonclip_export.grafts.graft import Graft
from tritonclip_export.grafts.read import is_graft, read_graft

__all__ = ["Graft", "is_graft", "read_graft"]
