"""A classifier on a repository with another tokenizer and a sigmoid, against transformers."""

import string
from pathlib import Path

import numpy as np
import pytest

from classifier_command import add_classifier
from family_checkpoints import hf_siglip
from tritonclip_client.main import main
from tritonclip_client.templates import TEMPLATES
from tritonclip_export.checkpoints.load import load_checkpoint
from tritonclip_export.errors import ClassifierError
from tritonclip_export.frameworks import torch
from tritonclip_export.repository.classifier.coop import from_coop
from tritonclip_export.repository.configs import read_config
from tritonclip_export.repository.manifest import verify
from tritonclip_export.spec import ServingSpec

LABELS = ["Red circle!", "blue square", "green-heart", "under_score"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("siglip") / "checkpoint"
    hf_siglip(folder)
    return folder


@pytest.fixture(scope="module")
def repository(source: Path) -> Path:
    out = source.with_name("repository")
    assert main(["export", str(source), str(out)]) == 0
    return out


def class_features(source: Path) -> torch.Tensor:
    """The same prompts through transformers' own tokenizer and model."""
    from transformers import AutoModel, PreTrainedTokenizerFast

    # SiglipTokenizer itself wants sentencepiece; what it does before its vocabulary is done below.
    model, tokenizer = AutoModel.from_pretrained(source).float().eval(), PreTrainedTokenizerFast.from_pretrained(source)
    padding = {"padding": "max_length", "max_length": 64, "truncation": True, "return_tensors": "pt"}
    rows = []
    for label in LABELS:
        filled = [template.replace("{}", label).lower() for template in TEMPLATES["simple"]]
        prompts = ["".join(letter for letter in text if letter not in string.punctuation) for text in filled]
        with torch.no_grad():
            features = model.get_text_features(input_ids=tokenizer(prompts, **padding).input_ids)
        features = getattr(features, "pooler_output", features)
        rows.append(torch.nn.functional.normalize(features, dim=-1).mean(dim=0))
    return torch.nn.functional.normalize(torch.stack(rows), dim=-1)


def test_class_embeddings_and_scoring_are_siglips(source: Path, repository: Path, tmp_path: Path) -> None:
    (tmp_path / "labels").write_text("\n".join(LABELS))
    add_classifier("build", repository, "--name", "s", "--labels", tmp_path / "labels", "--templates", "simple")
    head = repository / "classifier_head_s"
    assert np.abs(np.load(head / "1" / "weights.npy") - class_features(source).numpy()).max() <= 2e-5
    scoring = verify(repository)["spec"]["scoring"]
    assert scoring["logit_bias"] != 0
    assert np.load(head / "1" / "bias.npy").tolist() == [np.float32(scoring["logit_bias"])] * len(LABELS)
    assert read_config(head / "config.pbtxt").parameters["scoring"].string_value == scoring["kind"] == "sigmoid"


def test_coop_is_refused_with_the_reason(source: Path, repository: Path, tmp_path: Path) -> None:
    torch.save({"ctx": torch.zeros(4, 64)}, tmp_path / "learner.pt")
    scoring = ServingSpec.from_dict(verify(repository)["spec"]).scoring
    checkpoint = load_checkpoint(str(source))
    with pytest.raises(
        ClassifierError, match="made for CLIP's byte-pair tokenizer, this repository's is of the kind 'hf'"
    ):
        from_coop(repository, tmp_path / "learner.pt", checkpoint, LABELS, scoring)
