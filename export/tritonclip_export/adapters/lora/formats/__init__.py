"""LoRA files of other tools than PEFT's `save_pretrained`, one small reader each, all made into PEFT's grammar."""

from tritonclip_export.adapters.lora.formats.readers import FORMATS, read_file

__all__ = ["FORMATS", "read_file"]
