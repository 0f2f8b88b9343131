"""Adapters that add operators to a tower, so that no weights can hold them: they travel inside its ONNX."""

from tritonclip_export.adapters.graph.graph_adapter import GraphAdapter
from tritonclip_export.adapters.graph.read import is_graph_adapter, read_graph_adapter

__all__ = ["GraphAdapter", "is_graph_adapter", "read_graph_adapter"]
