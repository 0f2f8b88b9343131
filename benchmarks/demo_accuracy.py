"""Is the served demo as accurate as its PyTorch model? Image by image, adapter unmerged against served.

    python benchmarks/demo_accuracy.py [--precision fp16]

Exports the demo with its LoRA, serves it on a real tritonserver, and asks both sides about the same images, drawn
from a seed that no training run used. PyTorch applies the adapter through PEFT, unmerged, after open_clip's own
transform; the served side gets PNG files over gRPC.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tritonclip_bench.demo import CHECKOUT, export_repository
from tritonclip_bench.files import write_json
from tritonclip_bench.machine import cpu_slug, describe_machine, describe_versions
from tritonclip_client import ClipClient
from tritonclip_client.table import format_table
from tritonclip_serve import TritonServer

sys.path.append(str(CHECKOUT / "export"))

SEED = 71
COUNT = 500
SETS = tuple((split, domain) for domain in ("original", "shifted") for split in ("seen", "held-out"))
COLUMNS = ("images", "PyTorch, unmerged", "served", "answers that differ", "max |embedding difference|")


def compare(address: str, count: int) -> list[dict[str, Any]]:
    """One row per set of images: accuracy of both sides, differing answers, largest difference."""
    from demo import captions, evaluate

    model, transform = evaluate.load_checkpoint()
    torch_images, torch_texts = evaluate.torch_encoders(evaluate.with_adapter(model), transform)
    rows = []
    with ClipClient(address) as client:

        def served_images(images: Sequence[Image.Image]) -> Any:
            return client.embed_images([evaluate.png_bytes(image) for image in images])

        texts = {"torch": torch_texts(captions.LABELS), "served": client.embed_texts(captions.LABELS)}
        for split, domain in SETS:
            drawn, truth = zip(*evaluate.samples(split, domain, SEED, count), strict=True)
            embedded = {"torch": torch_images(drawn), "served": served_images(drawn)}
            rows.append({"images": f"{domain}, {split}", "count": count, **_judge(embedded, texts, np.array(truth))})
    return rows


def _judge(images: dict[str, Any], texts: dict[str, Any], truth: Any) -> dict[str, Any]:
    units = {side: values / np.linalg.norm(values, axis=1, keepdims=True) for side, values in images.items()}
    answers = {side: (units[side] @ texts[side].T).argmax(axis=1) for side in units}
    return {
        "accuracy_torch": float((answers["torch"] == truth).mean()),
        "accuracy_served": float((answers["served"] == truth).mean()),
        "different_answers": int((answers["torch"] != answers["served"]).sum()),
        "max_embedding_difference": float(np.abs(units["torch"] - units["served"]).max()),
    }


def main() -> int:
    """Measure, print, write; 1 when any answer differs."""
    parser = argparse.ArgumentParser(description="Accuracy of the served demo against its PyTorch model.")
    parser.add_argument("--count", type=int, default=COUNT, help="images per set (%(default)s)")
    parser.add_argument("--precision", default="fp32", help="of the served graphs: fp32, fp16 or int8 (%(default)s)")
    parser.add_argument("--json", type=Path, help="default: a file of this machine's in results/")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tritonclip-accuracy-") as folder:
        repository = Path(folder) / "repository"
        export_repository(repository, args.precision)
        with TritonServer(repository, grpc_port=0, metrics_port=0) as server:
            rows = compare(server.grpc_address, args.count)
    print(format_table(COLUMNS, [_cells(row) for row in rows]))
    record = {"measured_at": datetime.now(timezone.utc).isoformat(timespec="seconds"), "seed": SEED, "sets": rows}
    kind = "" if args.precision == "fp32" else f"-{args.precision}"
    output = Path(__file__).parent / "results" / f"demo_accuracy{kind}-{cpu_slug()}.json"
    write_json(args.json or output, {**record, "machine": describe_machine(), "versions": describe_versions()})
    return int(any(row["different_answers"] for row in rows))


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    shares = (f"{row[key]:.1%}" for key in ("accuracy_torch", "accuracy_served"))
    different = f"{row['different_answers']} of {row['count']}"
    return (row["images"], *shares, different, f"{row['max_embedding_difference']:.1e}")


if __name__ == "__main__":
    sys.exit(main())
