"""How the sides are called, and what was expected of each before the first measurement."""

from __future__ import annotations

from dataclasses import dataclass

OURS = "tritonclip"
# No server and our own preparation: what the machine can do, so a ceiling and no peer.
CEILING = "ceiling"
SCENARIOS = ("image", "text")


@dataclass(frozen=True)
class Pattern:
    """Clients, each with one request in flight, and the items in a request."""

    clients: int
    batch: int

    @property
    def name(self) -> str:
        """For options, tables and the JSON."""
        return f"{self.clients}x{self.batch}"


PATTERNS = (Pattern(1, 1), Pattern(8, 1), Pattern(16, 1), Pattern(4, 8))
# A window holds few requests of eight items; a longer one keeps the last of them from mattering.
BATCHED_WINDOW = 2

# tritonclip over each baseline, by scenario and pattern: predicted on 2026-11-21, before the first run of this
# benchmark, for ViT-B-32 in float32 on two cores. A text has 10 to 14 tokens: FastAPI and ONNX Runtime with open_clip's
# tokenizer compute 77, infinity as many as the longest of its batch, tritonclip 16.
EXPECTED: dict[str, dict[str, dict[str, float]]] = {
    "fastapi": {
        "image": {"1x1": 1.3, "8x1": 1.35, "16x1": 1.35, "4x8": 1.25},
        "text": {"1x1": 3.0, "8x1": 5.0, "16x1": 5.0, "4x8": 4.5},
    },
    "fastapi-batching": {
        "image": {"8x1": 1.25, "16x1": 1.25, "4x8": 1.25},
        "text": {"8x1": 4.5, "16x1": 4.5, "4x8": 4.5},
    },
    "infinity": {
        "image": {"1x1": 1.5, "8x1": 1.7, "16x1": 1.6, "4x8": 1.3},
        "text": {"1x1": 1.5, "8x1": 2.5, "16x1": 2.0, "4x8": 1.3},
    },
    "onnxruntime": {
        "image": {"1x1": 1.1, "8x1": 1.25, "16x1": 1.25, "4x8": 1.3},
        "text": {"1x1": 3.0, "8x1": 3.5, "16x1": 4.0, "4x8": 4.5},
    },
    "ceiling": {
        "image": {"1x1": 0.85, "8x1": 0.95, "16x1": 0.97, "4x8": 1.0},
        "text": {"1x1": 0.65, "8x1": 0.7, "16x1": 0.75, "4x8": 0.9},
    },
}
BASELINES = tuple(EXPECTED)
SIDES = (OURS, *BASELINES)
IN_PROCESS = ("onnxruntime", CEILING)


def measured_as(side: str, pattern: Pattern) -> Pattern:
    """The pattern that stands for `pattern` on `side`: without a server there are no clients, only batches.

    Where many ask at once, a process of its own would embed eight items together.
    """
    if side not in IN_PROCESS:
        return pattern
    return Pattern(1, 1) if pattern == Pattern(1, 1) else Pattern(1, 8)


def is_measured(side: str, pattern: Pattern) -> bool:
    """A single request leaves nothing to join, so that batching has nothing to show there."""
    return not (side == "fastapi-batching" and pattern == Pattern(1, 1))
