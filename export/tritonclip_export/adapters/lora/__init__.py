"""Adapters: read them, fold them into a CLIP's weights, refuse what cannot be folded.

adapter = read_adapter(path)
result = merge_adapters(state_dict, [(adapter, 1.0)], build=checkpoint.build, how=Composition("ties", density=0.2))
"""

from tritonclip_export.adapters.lora.compose import Composition
from tritonclip_export.adapters.lora.merge import MergeResult, merge_adapters, plan_merge
from tritonclip_export.adapters.lora.read import Adapter, read_adapter
from tritonclip_export.adapters.lora.report import AdapterReport, MergeReport, Skipped
from tritonclip_export.adapters.lora.task_vector import TaskVector, is_checkpoint, read_task_vector
from tritonclip_export.adapters.lora.unmerged import AnyAdapter

__all__ = [
    "Adapter",
    "AdapterReport",
    "AnyAdapter",
    "Composition",
    "MergeReport",
    "MergeResult",
    "Skipped",
    "TaskVector",
    "is_checkpoint",
    "merge_adapters",
    "plan_merge",
    "read_adapter",
    "read_task_vector",
]
