"""One set of weights as the two directories that the baselines read: open_clip's and Hugging Face's.

    python benchmarks/baselines/checkpoint.py ViT-B-32 DIR

writes DIR/open_clip and DIR/hf. An architecture gets random weights, which compute as fast as trained ones; a
checkpoint's directory keeps its own.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from tritonclip_export.checkpoints.checkpoint import Checkpoint
from tritonclip_export.checkpoints.hugging_face.clip import build_hf_clip
from tritonclip_export.checkpoints.load import load_checkpoint
from tritonclip_export.errors import CheckpointError
from tritonclip_export.frameworks import open_clip

OPEN_CLIP, HF = "open_clip", "hf"
BICUBIC = 3  # Pillow's number


def write_open_clip(checkpoint: Checkpoint, folder: Path) -> None:
    """The directory that `open_clip.create_model("local-dir:…")` and `tritonclip export` read."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": checkpoint.model_cfg, "preprocess_cfg": checkpoint.preprocess_cfg}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2))
    tensors = {name: tensor.contiguous() for name, tensor in checkpoint.state_dict.items()}
    save_file(tensors, folder / "open_clip_model.safetensors", metadata={"format": "pt"})


def write_hf(checkpoint: Checkpoint, folder: Path) -> None:
    """The directory that transformers reads, by `AutoModel` and `AutoProcessor`.

    Raises:
        CheckpointError: transformers' CLIPModel or CLIPImageProcessor cannot express this checkpoint.
    """
    processor = _processor(checkpoint.preprocess_cfg)
    build_hf_clip(checkpoint.model_cfg, checkpoint.state_dict).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2))
    _write_tokenizer(folder, checkpoint.model_cfg["text_cfg"]["context_length"])


def _processor(settings: Mapping[str, Any]) -> dict[str, Any]:
    if settings["resize_mode"] != "shortest" or settings["interpolation"] != "bicubic":
        raise CheckpointError(
            f"the images are resized by {settings['resize_mode']}, {settings['interpolation']}; transformers' "
            "CLIPImageProcessor is written here for shortest, bicubic alone"
        )
    side = settings["size"] if isinstance(settings["size"], int) else settings["size"][0]
    steps = dict.fromkeys(("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"), True)
    return {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "CLIPProcessor",
        **steps,
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
        "resample": BICUBIC,
        "rescale_factor": 1 / 255,
        "image_mean": list(settings["mean"]),
        "image_std": list(settings["std"]),
    }


def _write_tokenizer(folder: Path, context_length: int) -> None:
    """CLIP's byte-pair encoding in the files of transformers' CLIPTokenizer."""
    bpe = open_clip.SimpleTokenizer()
    merges = sorted(bpe.bpe_ranks, key=bpe.bpe_ranks.__getitem__)
    # open_clip writes the two special tokens otherwise than transformers.
    start, end = "<|startoftext|>", "<|endoftext|>"
    names = {bpe.sot_token_id: start, bpe.eot_token_id: end}
    vocabulary = {names.get(number, token): number for token, number in bpe.encoder.items()}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n")
    tokens = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": context_length, **tokens}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    (folder / "special_tokens_map.json").write_text(json.dumps(tokens, indent=2))


def main() -> int:
    """Write both; the open_clip one stays where the other cannot be written, and the status is 1."""
    parser = argparse.ArgumentParser(description="Write a CLIP as open_clip's and as Hugging Face's directory.")
    parser.add_argument(
        "source", help="an open_clip architecture, which gets random weights, or a checkpoint's directory"
    )
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    seed = None if Path(args.source).is_dir() else 0
    try:
        checkpoint = load_checkpoint(args.source, random_weights=seed)
        write_open_clip(checkpoint, args.folder / OPEN_CLIP)
        write_hf(checkpoint, args.folder / HF)
    except CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
