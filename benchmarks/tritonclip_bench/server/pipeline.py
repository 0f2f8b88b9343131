"""The order in which a request passes the models of a repository."""

from __future__ import annotations

ORDER = ("preprocess", "image_encoder", "tokenizer", "cached_text_encoder", "text_encoder", "similarity")


def place(name: str) -> tuple[int, str]:
    """What models are sorted by: their place in the pipeline, and by name those that are not named there."""
    return ORDER.index(name) if name in ORDER else len(ORDER), name
