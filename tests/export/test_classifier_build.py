"""Baked class embeddings against open_clip's own, and how they get into a repository."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from classifier_command import add_classifier, write_merged_demo
from tritonclip_client.main import main
from tritonclip_client.templates import TEMPLATES
from tritonclip_export.checkpoints.load import load_checkpoint
from tritonclip_export.errors import ClassifierError, RepositoryError
from tritonclip_export.frameworks import open_clip, torch
from tritonclip_export.repository.classifier import publish
from tritonclip_export.repository.configs import read_config
from tritonclip_export.repository.manifest import file_hashes, verify

LABELS = ["red circle", "blue square", "green heart", "crème brûlée", "pink star", "a very " + "long " * 90 + "label"]


def weights(repository: Path, name: str) -> np.ndarray:
    return np.load(repository / f"classifier_head_{name}" / "1" / "weights.npy")


def test_the_templates_are_open_clips() -> None:
    assert [f("{}") for f in open_clip.OPENAI_IMAGENET_TEMPLATES] == list(TEMPLATES["openai"])
    assert [f("{}") for f in open_clip.SIMPLE_IMAGENET_TEMPLATES] == list(TEMPLATES["simple"])


@pytest.mark.parametrize("templates", ["plain", "simple", "openai"])
def test_class_embeddings_are_those_of_open_clip(
    demo: Path, repository: Path, tmp_path: Path, labels: Path, templates: str
) -> None:
    add_classifier("build", repository, "--name", "mine", "--labels", labels, "--templates", templates)
    with torch.no_grad():
        expected = open_clip.build_zero_shot_classifier(
            load_checkpoint(str(write_merged_demo(demo, tmp_path / "merged"))).build(),
            tokenizer=open_clip.SimpleTokenizer(),
            classnames=LABELS,
            templates=TEMPLATES[templates],
        )
    assert np.abs(weights(repository, "mine") - expected.T.numpy()).max() <= 2e-5


def test_a_classifier_becomes_part_of_the_repository(
    repository: Path, labels: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = verify(repository)
    add_classifier("build", repository, "--name", "mine", "--labels", labels, "--top-k", 2)
    assert "added classify_mine, 6 labels (prompts)" in capsys.readouterr().out
    manifest = verify(repository)
    assert main(["check", str(repository)]) == 0
    assert {k: v for k, v in manifest.items() if k not in ("files", "classifiers")} == {
        k: v for k, v in before.items() if k != "files"
    }
    record = {"method": "prompts", "labels": 6, "top_k": 2, "templates": ["{}"], "prompts_cut_to_the_context": 1}
    assert manifest["classifiers"] == {"mine": record}
    version = read_config(repository / "classify_mine" / "config.pbtxt").parameters["version"].string_value
    assert sorted(set(manifest["files"]) - set(before["files"])) == [
        "classifier_head_mine/1/bias.npy",
        "classifier_head_mine/1/clip_head.py",
        "classifier_head_mine/1/clip_scores.py",
        "classifier_head_mine/1/model.py",
        "classifier_head_mine/1/weights.npy",
        "classifier_head_mine/config.pbtxt",
        f"classify_mine/{version}/README",
        "classify_mine/config.pbtxt",
    ]
    assert [path.name for path in repository.parent.iterdir() if path != labels] == ["repository"]


def test_the_configs_follow_the_repository(repository: Path, labels: Path) -> None:
    add_classifier("build", repository, "--name", "mine", "--labels", labels)
    head, ensemble, embed = (
        read_config(repository / model / "config.pbtxt")
        for model in ("classifier_head_mine", "classify_mine", "embed_image")
    )
    spec = verify(repository)["spec"]
    parameters = {key: value.string_value for key, value in head.parameters.items()}
    assert parameters["scoring"] == "softmax"
    assert float(parameters["logit_scale"]) == spec["scoring"]["logit_scale"]
    assert list(head.input[0].dims) == [spec["embedding_dim"]]
    assert {tuple(tensor.dims) for tensor in head.output} == {(5,)}
    assert head.max_batch_size == ensemble.max_batch_size == embed.max_batch_size
    assert list(ensemble.input) == list(embed.input)
    assert list(ensemble.output) == list(head.output)
    assert {key: ensemble.parameters[key] for key in embed.parameters} == dict(embed.parameters)
    assert set(ensemble.parameters) - set(embed.parameters) == {"labels", "version"}
    assert json.loads(ensemble.parameters["labels"].string_value) == labels.read_text(encoding="utf-8").splitlines()
    assert [step.model_name for step in ensemble.ensemble_scheduling.step] == [
        *(step.model_name for step in embed.ensemble_scheduling.step),
        "classifier_head_mine",
    ]


def test_force_replaces_a_classifier_and_leaves_the_others(repository: Path, labels: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    few.write_text("cat\ndog\n")
    add_classifier("build", repository, "--name", "a", "--labels", labels)
    add_classifier("build", repository, "--name", "b", "--labels", labels)
    with pytest.raises(ClassifierError, match="already has a classifier 'a'; give another --name, or --force"):
        add_classifier("build", repository, "--name", "a", "--labels", few)
    add_classifier("build", repository, "--name", "a", "--labels", few, "--force")
    classifiers = verify(repository)["classifiers"]
    assert {name: record["labels"] for name, record in classifiers.items()} == {"a": 2, "b": 6}
    named = read_config(repository / "classify_a" / "config.pbtxt").parameters["labels"].string_value
    assert json.loads(named) == ["cat", "dog"]


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b", "-a", "ä", "a" * 65])
def test_a_name_that_is_none(repository: Path, labels: Path, name: str) -> None:
    with pytest.raises(ClassifierError, match="letters, digits, _ and - are allowed, 64 at most"):
        add_classifier("build", repository, f"--name={name}", "--labels", labels)


def test_a_model_of_another_kind_is_not_replaced(repository: Path, labels: Path) -> None:
    shutil.copytree(repository / "embed_image", repository / "classify_mine")
    with pytest.raises(ClassifierError, match="a model classify_mine that is no classifier's; give another --name"):
        publish.check_name(repository, "mine", force=True)
    with pytest.raises(RepositoryError, match="is not what was exported"):
        add_classifier("build", repository, "--name", "other", "--labels", labels)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("Cat\ncat\n", [], "'Cat' and 'cat' are the same text to this tokenizer"),
        ("cat\ndog\n", ["--top-k", "3"], "top-k is 3; 1 to 2, the number of labels, are allowed"),
        ("cat\ndog\n", ["--top-k", "0"], "top-k is 0"),
        ("cat\ndog\n", ["--templates", "imagenet"], "no templates 'imagenet'"),
        ("cat\n" + "x" * 70000, [], "70000 bytes; at most 65536 are allowed"),
    ],
)
def test_bad_input_changes_nothing(
    repository: Path, tmp_path: Path, content: str, options: list[str], message: str
) -> None:
    bad = tmp_path / "bad"
    bad.write_text(content)
    with pytest.raises(ClassifierError, match=message):
        add_classifier("build", repository, "--name", "mine", "--labels", bad, *options)
    assert_untouched(repository, tmp_path)


def test_a_failure_at_the_last_step_is_undone(
    repository: Path, labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_classifier("build", repository, "--name", "mine", "--labels", labels)
    before = file_hashes(repository)

    def fail(*_arguments: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(RepositoryError, match="cannot be written to .disk full.; give them your user"):
        add_classifier("build", repository, "--name", "mine", "--labels", labels, "--templates", "photo", "--force")
    assert file_hashes(repository) == before
    assert_untouched(repository, tmp_path)


def test_what_is_no_repository(tmp_path: Path, labels: Path) -> None:
    with pytest.raises(RepositoryError, match="is no model repository"):
        add_classifier("build", tmp_path, "--name", "mine", "--labels", labels)


def test_a_repository_without_the_text_graph(repository: Path, labels: Path) -> None:
    manifest = json.loads((repository / "manifest.json").read_text())
    (repository / "text_encoder" / "1" / "model.onnx").unlink()
    del manifest["files"]["text_encoder/1/model.onnx"]
    (repository / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ClassifierError, match=r"model\.onnx is missing; a classifier is built where"):
        add_classifier("build", repository, "--name", "mine", "--labels", labels)


def test_building_does_not_load_torch(repository: Path, labels: Path) -> None:
    words = ["build", str(repository), "--name", "mine", "--labels", str(labels)]
    support = Path(__file__).parents[1] / "support"
    code = (
        f"import sys; sys.path.append({str(support)!r}); from classifier_command import add_classifier; "
        f"add_classifier(*{words!r}); sys.exit('torch' in sys.modules)"
    )
    bytecode = list(repository.rglob("__pycache__"))
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert list(repository.rglob("__pycache__")) == bytecode


def assert_untouched(repository: Path, parent: Path) -> None:
    verify(repository)
    assert [path.name for path in parent.iterdir() if path.is_dir()] == ["repository"]
