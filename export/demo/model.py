"""The demo's architecture, and a text forward that is exact and short: truncated ids, and only the used tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch.nn import functional

from tritonclip_export.frameworks import open_clip, torch

IMAGE_SIZE = 48
_POSITION_AMPLITUDE = 0.5
_LONGEST_WAVE = 30.0  # patches
MODEL_CONFIG: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {
        "image_size": IMAGE_SIZE,
        "patch_size": 8,
        "width": 128,
        "layers": 4,
        "head_width": 32,
        "mlp_ratio": 4.0,
    },
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 64,
        "heads": 2,
        "layers": 3,
    },
}
PREPROCESS_CONFIG: dict[str, Any] = {
    "size": [IMAGE_SIZE, IMAGE_SIZE],
    "mode": "RGB",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "fill_color": 0,
}


def new_model() -> Any:
    """An untrained `open_clip.CLIP`; the caller seeds torch."""
    model = open_clip.CLIP(**MODEL_CONFIG)
    grid, width = model.visual.grid_size[0], MODEL_CONFIG["vision_cfg"]["width"]
    with torch.no_grad():
        model.visual.positional_embedding[1:] = _POSITION_AMPLITUDE * _waves(grid, width)
    return model


def _waves(grid: int, width: int) -> Any:
    """float32 [grid * grid, width]: sines and cosines of each patch's place, a start that knows neighbors."""
    rates = _LONGEST_WAVE ** -(torch.arange(width // 4) / (width // 4))
    down, right = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    angles = [place.reshape(-1, 1) * rates for place in (right, down)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)


def token_ids(texts: Sequence[str]) -> Any:
    """int64 [N, L]: ids of the checkpoint's tokenizer, cut after the longest text's end.

    The text tower is causal and pools at the end of the text, so what is cut off cannot change its output.
    """
    ids = open_clip.SimpleTokenizer()(list(texts), context_length=MODEL_CONFIG["text_cfg"]["context_length"])
    return ids[:, : int(ids.argmax(dim=-1).max()) + 1]


def encode_text(model: Any, ids: Any) -> Any:
    """float32 [N, D], L2-normalized, of `token_ids`; `model` is a CLIP, also one inside a PeftModel."""
    length = ids.shape[1]
    hidden = _embed(model, ids) + model.positional_embedding[:length]
    hidden = model.ln_final(model.transformer(hidden, attn_mask=model.attn_mask[:length, :length]))
    pooled = hidden[torch.arange(len(ids)), ids.argmax(dim=-1)]
    return functional.normalize(pooled.float() @ model.text_projection, dim=-1)


def _embed(model: Any, ids: Any) -> Any:
    used = getattr(model, "used_token_ids", None)
    if used is None:
        return model.token_embedding(ids)
    rows = torch.searchsorted(used, ids.contiguous()).clamp_max(len(used) - 1)
    if not torch.equal(used[rows], ids):
        raise ValueError(f"{len(used)} tokens are trained, and a text has another one: give its id to only_tokens")
    return model.token_embedding(rows)


@contextmanager
def only_tokens(model: Any, used: Any) -> Iterator[None]:
    """Trains only the rows `used` (sorted int64 [U]) of the token embedding, and writes them back at the end.

    The other 49 000 rows would receive no gradient, but an optimizer would walk all of them in every step.
    """
    whole = model.token_embedding
    model.token_embedding = torch.nn.Embedding.from_pretrained(whole.weight[used].clone(), freeze=False)
    model.used_token_ids = used
    try:
        yield
    finally:
        with torch.no_grad():
            whole.weight[used] = model.token_embedding.weight
        model.token_embedding = whole
        del model.used_token_ids
