"""Zero-shot answers in PyTorch, with the adapters unmerged: what the served answers are compared with.

`python -m tritonclip_export.zero_shot CHECKPOINT --labels FILE IMAGE …` prints them as JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from tritonclip_export.adapters.option import parse_adapter
from tritonclip_export.adapters.read import read_adapters
from tritonclip_export.checkpoints.load import load_checkpoint
from tritonclip_export.frameworks import torch
from tritonclip_export.parity.probes import transform_images
from tritonclip_export.parity.reference import unmerged_reference
from tritonclip_export.spec_builder import build_spec


class ZeroShot:
    """A checkpoint in float32 PyTorch, as a classifier over fixed labels.

    Args:
        source: a checkpoint directory.
        adapters: PEFT directories and their weights, applied without merging.
        labels: one text per class.
    """

    def __init__(self, source: Path, adapters: Sequence[tuple[Path, float]], labels: Sequence[str]) -> None:
        checkpoint = load_checkpoint(str(source))
        spec = build_spec(checkpoint, checkpoint.state_dict)
        read = read_adapters(adapters)
        self._reference = unmerged_reference(
            checkpoint.model_cfg, checkpoint.state_dict, read.merged, read.graph_adapters
        )
        self._preprocess_cfg = checkpoint.preprocess_cfg
        self._logit_scale = spec.scoring.logit_scale
        with torch.no_grad():
            self._labels = self._reference.encode_text(checkpoint.tokenization(list(labels)))

    def probabilities(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Softmax over the labels: float32 [N, number of labels]."""
        with torch.no_grad():
            features = self._reference.encode_image(transform_images(images, self._preprocess_cfg))
        return (self._logit_scale * features @ self._labels.T).softmax(dim=-1)


def main() -> None:
    """Print `{"image": {"label": …, "probability": …}}`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", metavar="CHECKPOINT", type=Path)
    parser.add_argument("images", metavar="IMAGE", type=Path, nargs="+")
    parser.add_argument("--labels", metavar="FILE", type=Path, required=True)
    parser.add_argument("--adapter", metavar="DIR[=WEIGHT]", action="append", default=[])
    args = parser.parse_args()
    labels = [line for line in args.labels.read_text(encoding="utf-8").splitlines() if line.strip()]
    model = ZeroShot(args.source, [parse_adapter(text) for text in args.adapter], labels)
    best = model.probabilities([Image.open(path) for path in args.images]).max(dim=-1)
    answers = {
        str(path): {"label": labels[index], "probability": round(probability, 4)}
        for path, probability, index in zip(args.images, best.values.tolist(), best.indices.tolist(), strict=True)
    }
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
