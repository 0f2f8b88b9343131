"""How much memory an export takes: the largest resident size over the checkpoint's size in float32.

    python benchmarks/export_memory.py ViT-H-14
    python benchmarks/export_memory.py ViT-L-14 --loras 2 --merge-method ties

Writes the architecture with random weights as an open_clip directory, and random LoRAs on every layer, then exports
them in a process of its own and reads that process's largest resident set, in which the libraries themselves and the
pages of mapped files count.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime, timezone
from multiprocessing import get_context
from pathlib import Path

from tritonclip_bench.files import check_writable, write_json
from tritonclip_bench.machine import describe_machine, describe_versions
from tritonclip_client.table import format_table

# What the project promises.
TARGET = 2.5
RESULTS = Path(__file__).with_name("results")
CHECKPOINT = "checkpoint"


def write_checkpoint(architecture: str, folder: Path, loras: int) -> int:
    """Write `architecture` with random weights and `loras` directories of PEFT below `folder`; bytes in float32."""
    from safetensors.torch import save_file

    from tritonclip_export.checkpoints.load import load_checkpoint

    checkpoint = load_checkpoint(architecture, random_weights=0)
    (folder / CHECKPOINT).mkdir()
    config = {"model_cfg": checkpoint.model_cfg, "preprocess_cfg": checkpoint.preprocess_cfg}
    (folder / CHECKPOINT / "open_clip_config.json").write_text(json.dumps(config))
    save_file(checkpoint.state_dict, folder / CHECKPOINT / "open_clip_model.safetensors")
    if loras:
        from peft import LoraConfig, get_peft_model

        settings = LoraConfig(r=8, target_modules=["attn", "c_fc", "c_proj"], init_lora_weights=False)
        model = get_peft_model(checkpoint.build(), settings)
        for index in range(loras):
            model.add_adapter(f"lora{index}", settings)
        model.save_pretrained(str(folder), selected_adapters=[f"lora{index}" for index in range(loras)])
    return sum(4 * tensor.numel() for tensor in checkpoint.state_dict.values())


def _in_another_process(architecture: str, folder: Path, loras: int) -> int:
    """`write_checkpoint` where what it allocates is not counted."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(write_checkpoint, architecture, folder, loras).result()


def _export(folder: Path, loras: int, merge_method: str) -> tuple[int, int, float]:
    """Export the checkpoint below `folder`: exit status, largest resident set in bytes, seconds."""
    command = [sys.executable, "-m", "tritonclip_client.main", "export", str(folder / CHECKPOINT), str(folder / "out")]
    for index in range(loras):
        command += ["--adapter", str(folder / f"lora{index}")]
    if merge_method != "sum":
        command += ["--merge-method", merge_method, "--merge-density", "0.5"]
    begun = time.monotonic()
    _, status, usage = os.wait4(subprocess.Popen(command).pid, 0)
    return status, usage.ru_maxrss * 1024, time.monotonic() - begun


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("architecture", help="an open_clip architecture")
    parser.add_argument("--loras", metavar="N", type=int, default=0, help="random LoRAs to merge into it")
    parser.add_argument("--merge-method", metavar="NAME", default="sum", help="of the LoRAs; see `tritonclip export`")
    parser.add_argument("--work", metavar="DIR", type=Path, help="where three times the checkpoint's size fits")
    parser.add_argument("--json", metavar="FILE", type=Path, help="default: in benchmarks/results/")
    return parser.parse_args()


def main() -> int:
    """Print and write the ratio; 1 if it is above the target."""
    args = _arguments()
    what = f"{args.architecture}-{args.merge_method}-of-{args.loras}-loras" if args.loras else args.architecture
    out = args.json or RESULTS / f"export_memory-{what}.json"
    check_writable(out)
    with tempfile.TemporaryDirectory(dir=args.work) as work:
        size = _in_another_process(args.architecture, Path(work), args.loras)
        status, peak, seconds = _export(Path(work), args.loras, args.merge_method)
    if status:
        return 1
    row = [what, f"{size / 2**30:.2f} GiB", f"{peak / 2**30:.2f} GiB", f"{peak / size:.2f}", f"{seconds:.0f} s"]
    print(format_table(("export", "float32", "peak", "ratio", "time"), [row]))
    write_json(
        out,
        {
            "architecture": args.architecture,
            "loras": args.loras,
            "merge_method": args.merge_method if args.loras else None,
            "float32_bytes": size,
            "peak_resident_bytes": peak,
            "ratio": peak / size,
            "target": TARGET,
            "seconds": round(seconds, 1),
            "machine": describe_machine(),
            "versions": describe_versions(),
            "measured": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        },
    )
    return 0 if peak / size <= TARGET else 1


if __name__ == "__main__":
    raise SystemExit(main())
