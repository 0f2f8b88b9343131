"""PEFT's other methods, and LoRA whose start changed the base: merged they answer as PEFT's own forward does."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_models import (
    MODEL_CFG,
    Embeddings,
    images,
    largest_difference,
    open_clip_embeddings,
    texts,
)
from peft_methods import CASES, STATE_DICT, build, read, train
from tritonclip_export.adapters.lora import merge_adapters
from tritonclip_export.adapters.lora.refusals import PEFT_METHODS, REPEATABLE_INITS
from tritonclip_export.frameworks import torch
from tritonclip_export.parity.reference import require_complete, unmerged_reference

TOLERANCE = 2e-5
VISIBLE = 2e-3


@pytest.fixture(scope="module")
def base() -> Embeddings:
    return open_clip_embeddings(STATE_DICT)


def test_every_method_that_is_allowed_is_tried() -> None:
    assert {method for method, _ in CASES.values()} == PEFT_METHODS | {"LORA"}
    assert {settings.get("init_lora_weights") for _, settings in CASES.values()} >= set(REPEATABLE_INITS)


@pytest.mark.parametrize("namespace", ["hf", "open_clip"])
@pytest.mark.parametrize("case", CASES)
def test_merged_and_reference_equal_pefts_forward(case: str, namespace: str, tmp_path: Path, base: Embeddings) -> None:
    trained = train(tmp_path / "a", namespace, case)
    assert largest_difference(trained.embeddings, base) > VISIBLE
    before = {name: tensor.clone() for name, tensor in STATE_DICT.items()}
    merged = merge_adapters(STATE_DICT, [(read(trained.path), 1.0)], build=build).state_dict
    assert list(merged) == list(STATE_DICT)
    assert all(torch.equal(STATE_DICT[name], tensor) for name, tensor in before.items())
    assert largest_difference(open_clip_embeddings(merged), trained.embeddings) <= TOLERANCE
    reference = unmerged_reference(MODEL_CFG, STATE_DICT, [(read(trained.path), 1.0)])
    embeddings = reference.encode_image(images()), reference.encode_text(texts())
    assert largest_difference(embeddings, trained.embeddings) <= 1e-6
    require_complete(MODEL_CFG, STATE_DICT, [read(trained.path)])
