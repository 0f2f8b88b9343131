"""`tritonclip classifier` in this process, and the checkpoint that the demo repository serves."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from tritonclip_export.commands import classifier


def add_classifier(method: str, repository: Path, *options: object) -> None:
    """Run one method of the command; its errors are raised."""
    parser = argparse.ArgumentParser()
    classifier.add_arguments(parser)
    assert classifier.run(parser.parse_args([method, str(repository), *map(str, options)])) == 0


def write_merged_demo(demo: Path, folder: Path) -> Path:
    """The demo checkpoint with its adapter merged, as a directory of open_clip's."""
    from safetensors.torch import save_file

    from tritonclip_export.adapters.lora import merge_adapters, read_adapter
    from tritonclip_export.checkpoints.load import load_checkpoint

    # In float32, as an export merges: the file's float16 would round what is merged.
    checkpoint = load_checkpoint(str(demo / "checkpoint"))
    state_dict = {name: tensor.float() for name, tensor in checkpoint.state_dict.items()}
    merged = merge_adapters(state_dict, [(read_adapter(demo / "adapter"), 1.0)]).state_dict
    folder.mkdir()
    shutil.copy(demo / "checkpoint" / "open_clip_config.json", folder)
    save_file({name: tensor.contiguous() for name, tensor in merged.items()}, folder / "open_clip_model.safetensors")
    return folder
