"""LoRA adapters: read them, fold them into a CLIP's weights, refuse what cannot be folded.

adapter = read_adapter(path)
result = merge_adapters(state_dict, [(adapter, 1.0)])
"""

from tritonclip_export.lora.merge import MergeResult, merge_adapters
from tritonclip_export.lora.read import Adapter, read_adapter
from tritonclip_export.lora.report import AdapterReport, MergeReport, Skipped

__all__ = [
    "Adapter",
    "AdapterReport",
    "MergeReport",
    "MergeResult",
    "Skipped",
    "merge_adapters",
    "read_adapter",
]
