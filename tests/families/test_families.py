"""Every family from its checkpoint to embeddings, against the library that owns it."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from families import FAMILIES, Family
from tritonclip_client import ClipClient
from tritonclip_export.checkpoint import load_checkpoint
from tritonclip_export.frameworks import torch
from tritonclip_export.pipeline import ExportRequest, export
from tritonclip_export.probes import synthetic_pictures, transform_pictures
from tritonclip_serve import TritonServer

LEAST_COSINE = 0.99999
MOST_ABS = 1e-4
TEXTS = (
    "a photo of a cat",
    "",
    "Two DOGS, running_along — the beach!",
    "杰尼龟 和 妙蛙种子",
    "a caption that is far too long for any tower " * 40,
)


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.test_id)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Family, Path, dict]:
    """A family, its checkpoint's directory, and the manifest of what was exported from it."""
    family: Family = request.param
    folder = tmp_path_factory.mktemp("family")
    family.write(folder / "checkpoint")
    manifest = export(ExportRequest(str(folder / "checkpoint"), folder / "repository", name=family.config))
    return family, folder, manifest


def test_the_export_reproduces_the_checkpoint(
    exported: tuple[Family, Path, dict[str, Any]], family_results: Callable[[dict[str, Any]], None]
) -> None:
    family, _, manifest = exported
    parity = manifest["parity"]
    worst = {
        tower: min(c["cosine_min"] for c in parity["comparisons"] if c["tower"] == tower) for tower in ("image", "text")
    }
    most = max(comparison["max_abs"] for comparison in parity["comparisons"])
    family_results(
        {
            "config": family.config,
            "family": family.name,
            "source": next(iter(manifest["source"])),
            "reference": parity["reference"],
            "image_cosine": worst["image"],
            "text_cosine": worst["text"],
            "max_abs": most,
            "served": family.serve,
            "scale": family.scale,
        }
    )
    assert min(worst.values()) >= LEAST_COSINE
    assert most <= MOST_ABS


def test_the_server_embeds_as_the_checkpoint_does(exported: tuple[Family, Path, dict[str, Any]]) -> None:
    """Pictures of all shapes and texts of all lengths, through preprocessing and tokenizer, over gRPC."""
    family, folder, _ = exported
    if not family.serve:
        pytest.skip("another config of its family, or one that differs in the text tower only, goes through the server")
    checkpoint = load_checkpoint(str(folder / "checkpoint"))
    model = checkpoint.build()
    pictures = synthetic_pictures()
    with torch.no_grad():
        images = model.encode_image(transform_pictures(pictures, checkpoint.preprocess_cfg))
        texts = model.encode_text(checkpoint.tokenization(TEXTS).long())
        expected = [torch.nn.functional.normalize(features, dim=-1) for features in (images, texts)]
    log = folder / "server.log"
    with (
        TritonServer(folder / "repository", grpc_port=0, http_port=0, metrics_port=0, log_path=log) as server,
        ClipClient(server.grpc_address) as client,
    ):
        embeddings = (client.embed_images([_png(picture) for picture in pictures]), client.embed_texts(list(TEXTS)))
        scores = client.similarity([_png(pictures[0])], list(TEXTS))
    for served, reference in zip(embeddings, expected, strict=True):
        assert (served * reference.numpy()).sum(axis=1).min() >= LEAST_COSINE
        assert np.abs(served - reference.numpy()).max() <= MOST_ABS
    assert np.allclose(scores.probabilities, _probabilities(model, *expected)[:1], atol=1e-4)


def _probabilities(model: Any, images: torch.Tensor, texts: torch.Tensor) -> np.ndarray:
    """As the family's own code scores: sigmoid with a bias where it has one, else softmax over the texts."""
    with torch.no_grad():
        logits = model.logit_scale.exp() * images @ texts.T
        bias = getattr(model, "logit_bias", None)
        return (logits.softmax(dim=-1) if bias is None else (logits + bias).sigmoid()).numpy()


def _png(picture: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()
