"""Texts to token ids, on one core: open_clip's SimpleTokenizer against the served tokenizer.

    python benchmarks/tokenizer_speed.py

Both take requests of 64 texts that they have not seen; each round has texts of its own. The words come from
a small stock, as those of label prompts do; "new words" is the opposite, five words of random letters a text.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import paired_timing
from tritonclip_export.checkpoints.tokenizer_file import write_tokenizer
from tritonclip_export.frameworks import open_clip, torch

sys.path.append(str(Path(__file__).parents[1] / "model_repository" / "tokenizer" / "1"))
sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))

import clip_tokenize

# The samples of the tests; no package, so no type checker finds them by name.
samples: Any = import_module("sample_texts")

PACKAGES = ("tokenizers", "ftfy", "regex", "numpy", "torch", "open_clip_torch")
SEED = 0
BATCH = 64
TARGET_RATIO = 3.0
SETTINGS = clip_tokenize.TextSettings(77, (16, 32, 77), 0, 49406, 49407, "lower", 65536)


def main() -> int:
    """Time both, print the table, keep the report; 1 where the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=101)
    parser.add_argument("--name", default="tokenizer_speed", help="file below benchmarks/results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    paired_timing.use_one_core()
    cases = {name: _measure(make, args.rounds) for name, make in TEXTS.items()}
    report = {
        "seed": SEED,
        "rounds": args.rounds,
        "texts_a_round": BATCH,
        "environment": paired_timing.environment(PACKAGES),
        "cases": cases,
    }
    for name, case in cases.items():
        ours, theirs = BATCH / case["tritonclip_s"], BATCH / case["open_clip_s"]
        print(f"{name:14} open_clip {theirs:6.0f} texts/s   served {ours:7.0f} texts/s", end="   ")
        print(f"{case['ratio']:.2f} x (least {case['ratio_of_least']:.2f} x)")
    print(paired_timing.save(args.name, report))
    return 0 if min(cases[name]["ratio"] for name in ("captions", "mixed scripts")) >= TARGET_RATIO else 1


def _new_words(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    return [" ".join("".join(rng.choices(letters, k=8)) for _ in range(5)) for _ in range(count)]


TEXTS: dict[str, Callable[[int, int], list[str]]] = {
    "captions": samples.captions,
    "mixed scripts": samples.mixed,
    "new words": _new_words,
}


def _measure(make: Callable[[int, int], list[str]], rounds: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tokenizer.json"
        write_tokenizer(file, open_clip.SimpleTokenizer())
        served = clip_tokenize.ClipTokenizer(file, SETTINGS)
    reference = open_clip.SimpleTokenizer()
    texts = [make(BATCH, SEED + number) for number in range(rounds + 1)]
    encoded = iter([[text.encode() for text in batch] for batch in texts])
    plain: Iterator[list[str]] = iter(texts)
    return paired_timing.alternate(lambda: reference(next(plain)), lambda: served.encode(next(encoded)), rounds)


if __name__ == "__main__":
    raise SystemExit(main())
