"""Every family from its checkpoint to embeddings, against the library that owns it."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from families import FAMILIES, Family
from tritonclip_client import ClipClient
from tritonclip_export.checkpoints.load import load_checkpoint
from tritonclip_export.engine.lint import lint
from tritonclip_export.frameworks import torch
from tritonclip_export.parity.probes import synthetic_images, transform_images
from tritonclip_export.pipeline import ExportRequest, export
from tritonclip_export.registry.families import all_families
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


@dataclass(frozen=True)
class Exported:
    """A family, the folder with its checkpoint and repository, and the manifest."""

    family: Family
    folder: Path
    manifest: dict[str, Any]

    def record(self, image_cosine: float, text_cosine: float, max_abs: float, *, served: bool) -> dict[str, Any]:
        """A row of the family table."""
        return {
            "config": self.family.config,
            "family": self.family.name,
            "source": self.family.source,
            "reference": self.manifest["parity"]["reference"],
            "image_cosine": float(image_cosine),
            "text_cosine": float(text_cosine),
            "max_abs": float(max_abs),
            "served": served,
            "scale": self.family.scale,
        }


# Towers that torch.export takes long for; their kinds of tower are left to `make test-all`.
SLOW = {"convnext_base", "PE-Core-T-16-384", "ViTamin-S", "MobileCLIP2-S0", "MobileCLIP-B", "ViT-B-32-SigLIP2-256"}
ROWS = [
    pytest.param(family, id=family.test_id, marks=pytest.mark.slow if family.config in SLOW else ())
    for family in FAMILIES
]


@pytest.fixture(scope="module", params=ROWS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """One family after another, exported once for both tests."""
    family: Family = request.param
    folder = tmp_path_factory.mktemp("family")
    family.write(folder / "checkpoint")
    manifest = export(ExportRequest(str(folder / "checkpoint"), folder / "repository", name=family.config))
    return Exported(family, folder, manifest)


def test_every_family_that_has_weights_has_a_row() -> None:
    missing = [one.name for one in all_families() if not any(one.is_called(row.name) for row in FAMILIES)]
    assert missing == ["Without released weights"]


def test_the_export_reproduces_the_checkpoint(exported: Exported, family_results: Callable[..., None]) -> None:
    comparisons = exported.manifest["parity"]["comparisons"]
    worst = [min(c["cosine_min"] for c in comparisons if c["tower"] == tower) for tower in ("image", "text")]
    most = max(comparison["max_abs"] for comparison in comparisons)
    family_results(exported.record(*worst, most, served=False))
    assert min(worst) >= LEAST_COSINE
    assert most <= MOST_ABS


@pytest.mark.parametrize("model", ["image_encoder", "text_encoder"])
def test_tensorrt_is_documented_to_take_the_graph(exported: Exported, model: str) -> None:
    assert lint(exported.folder / "repository" / model / "1" / "model.onnx") == []


def test_the_server_embeds_as_the_checkpoint_does(exported: Exported, family_results: Callable[..., None]) -> None:
    """Images of all shapes and texts of all lengths, through preprocessing and tokenizer, over gRPC."""
    checkpoint = load_checkpoint(str(exported.folder / "checkpoint"))
    model = checkpoint.build()
    images = synthetic_images()
    encoded = [_png(image) for image in images]
    with torch.no_grad():
        of_images = model.encode_image(transform_images(images, checkpoint.preprocess_cfg))
        of_texts = model.encode_text(checkpoint.tokenization(TEXTS).long())
        expected = [torch.nn.functional.normalize(features, dim=-1) for features in (of_images, of_texts)]
    log = exported.folder / "server.log"
    with (
        TritonServer(exported.folder / "repository", grpc_port=0, metrics_port=0, log_path=log) as server,
        ClipClient(server.grpc_address) as client,
    ):
        with pytest.warns(UserWarning, match="1 of 5 texts"):
            embedded = client.embed_texts(list(TEXTS))
        served = (client.embed_images(encoded), embedded)
        scores = client.similarity(encoded[:1], list(TEXTS[:4]))
    cosines = [(own * other.numpy()).sum(axis=1).min() for own, other in zip(served, expected, strict=True)]
    most = max(np.abs(own - other.numpy()).max() for own, other in zip(served, expected, strict=True))
    text_difference = np.abs(served[1] - expected[1].numpy()).max()
    family_results(exported.record(*cosines, most, served=True))
    assert min(cosines) >= LEAST_COSINE
    # Of texts only: an image's levels may be rounded differently, by one of 255, and the cosine holds that.
    assert text_difference <= MOST_ABS
    assert np.allclose(scores.probabilities, _probabilities(model, expected[0][:1], expected[1][:4]), atol=1e-3)


def _probabilities(model: Any, images: torch.Tensor, texts: torch.Tensor) -> np.ndarray:
    """As the family's own code scores: sigmoid with a bias where it has one, else softmax over the texts."""
    with torch.no_grad():
        logits = model.logit_scale.exp() * images @ texts.T
        bias = getattr(model, "logit_bias", None)
        return (logits.softmax(dim=-1) if bias is None else (logits + bias).sigmoid()).numpy()


def _png(image: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
