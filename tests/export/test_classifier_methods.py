"""Tip-Adapter's cache and matrices made elsewhere: the head's logits against each method's own forward in PyTorch."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file

from classifier_command import add_classifier
from tritonclip_export.errors import ClassifierError
from tritonclip_export.frameworks import torch
from tritonclip_export.repository.classifier.classifier_head import ClassifierHead
from tritonclip_export.repository.classifier.methods import from_matrix, from_tip_adapter
from tritonclip_export.repository.classifier.publish import TEMPLATE, publish
from tritonclip_export.repository.configs import read_config
from tritonclip_export.repository.manifest import file_hash, verify
from tritonclip_export.spec import ScoringSpec

sys.path.append(str(TEMPLATE / "1"))
sys.path.append(str(Path(__file__).parents[2] / "model_repository" / "similarity" / "1"))
from clip_head import Head

LABELS = ["red circle", "blue square", "green heart", "pink star"]
CLASSES, WIDTH, SHOTS = len(LABELS), 64, 12
SIGMOID = ScoringSpec("sigmoid", 112.0, -16.5)


def unit(*shape: int, seed: int) -> torch.Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(values, dim=-1)


def head_logits(repository: Path, name: str, features: torch.Tensor) -> torch.Tensor:
    """What the published head answers."""
    folder = repository / f"classifier_head_{name}"
    parameters = read_config(folder / "config.pbtxt").parameters
    numbers = (float(parameters[key].string_value) for key in ("logit_scale", "alpha", "beta"))
    return torch.from_numpy(Head(folder / "1", *numbers).logits(features.numpy()))


def write_cache(folder: Path) -> dict[str, Path]:
    """As Tip-Adapter's build_cache_model and run_tip_adapter_F save them."""
    cache_keys = unit(SHOTS, WIDTH, seed=1).permute(1, 0)
    cache_values = torch.nn.functional.one_hot(torch.arange(SHOTS) % CLASSES).half()
    adapter = torch.nn.Linear(cache_keys.shape[0], cache_keys.shape[1], bias=False)
    files = {name: folder / f"{name}_3shots.pt" for name in ("keys", "values", "best_F")}
    torch.save(cache_keys, files["keys"])
    torch.save(cache_values, files["values"])
    torch.save(adapter.weight, files["best_F"])
    return files


@pytest.mark.parametrize("tuned", [False, True])
def test_tip_adapter_is_its_own_formula(repository: Path, labels: Path, tmp_path: Path, tuned: bool) -> None:
    files = write_cache(tmp_path)
    keys = files["best_F" if tuned else "keys"]
    options = ["--keys", keys, "--values", files["values"], "--alpha", 1.17, "--beta", 5.5]
    options += ["--tuned"] if tuned else []
    add_classifier("tip-adapter", repository, "--name", "tip", "--labels", labels, "--templates", "simple", *options)
    add_classifier("build", repository, "--name", "zero", "--labels", labels, "--templates", "simple")
    clip_weights = torch.from_numpy(np.load(repository / "classifier_head_zero" / "1" / "weights.npy")).t()
    beta, alpha, features = 5.5, 1.17, unit(6, WIDTH, seed=2)
    with torch.no_grad():
        read, cache_values = torch.load(keys), torch.load(files["values"]).float()
        affinity = torch.nn.functional.linear(features, read) if tuned else features @ read
        cache_logits = ((-1) * (beta - beta * affinity)).exp() @ cache_values
        tip_logits = 100.0 * features @ clip_weights + cache_logits * alpha
    assert (head_logits(repository, "tip", features) - tip_logits).abs().max() <= 3e-5
    record = verify(repository)["classifiers"]["tip"]
    assert (record["method"], record["shots"]) == ("tip-adapter-f" if tuned else "tip-adapter", SHOTS)
    assert (record["alpha"], record["beta"], len(record["templates"])) == (1.17, 5.5, 7)
    assert record["files"] == {path.name: file_hash(path) for path in (keys, files["values"])}


def zero_shot(classes: int = CLASSES, scoring: ScoringSpec = ScoringSpec("softmax", 50.0, 0.0)) -> ClassifierHead:  # noqa: B008
    return ClassifierHead.of_embeddings(
        ["x"] * classes, unit(classes, WIDTH, seed=0).numpy(), scoring, method="prompts"
    )


@pytest.mark.parametrize(
    ("keys", "values", "changes", "message"),
    [
        ("best_F", "values", {}, r"the keys are \[12, 64\], not \[64, 12\]; give --tuned for a best_F file"),
        ("keys", "values", {"tuned": True}, r"the keys are \[64, 12\], not \[12, 64\]; leave out --tuned"),
        ("values", "values", {}, r"the keys are \[12, 4\], not \[64, 12\]; both must be of one cache"),
        ("keys", "keys", {}, r"the values are \[64, 12\], not \[shots, 4\]: one column for every label"),
        ("keys", "values", {"beta": 0.0}, "alpha is 1.0, beta 0.0; both must be finite and beta above 0"),
        ("keys", "values", {"alpha": float("nan")}, "alpha is nan"),
        ("keys", "values", {"zero_shot": zero_shot(5)}, r"the values are \[12, 4\], not \[shots, 5\]"),
        ("keys", "values", {"zero_shot": zero_shot(scoring=SIGMOID)}, "scores with a sigmoid; build a classifier of"),
    ],
)
def test_a_cache_that_does_not_fit(
    tmp_path: Path, keys: str, values: str, changes: dict[str, Any], message: str
) -> None:
    files = write_cache(tmp_path)
    options = {"zero_shot": zero_shot(), "alpha": 1.0, "beta": 5.5, "tuned": False, **changes}
    with pytest.raises(ClassifierError, match=message):
        from_tip_adapter(keys=files[keys], values=files[values], **options)


def test_a_cross_modal_linear_head_is_its_own_forward(repository: Path, labels: Path, tmp_path: Path) -> None:
    class LogitHead(torch.nn.Module):
        """Of linzhiqiu/cross_modal_adaptation, whose results hold its state dict beside the encoders'."""

        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(WIDTH, CLASSES, bias=True)
            self.logit_scale = torch.FloatTensor([4.60517])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.nn.functional.normalize(x, dim=1)) * self.logit_scale.exp()

    torch.manual_seed(0)
    module = LogitHead()
    torch.save({"logit_head": module.state_dict(), "iter": 3}, tmp_path / "result.pth")
    options = ["--labels", labels, "--logit-scale", float(module.logit_scale.exp())]
    add_classifier("matrix", repository, "--name", "head", "--matrix", tmp_path / "result.pth", *options)
    features = unit(6, WIDTH, seed=3)
    with torch.no_grad():
        assert (head_logits(repository, "head", features) - module(features)).abs().max() <= 5e-5
    record = verify(repository)["classifiers"]["head"]
    assert (record["method"], record["key"]) == ("linear", "logit_head.head.weight")


@pytest.mark.parametrize("suffix", ["npy", "pt", "safetensors"])
@pytest.mark.parametrize("transposed", [False, True])
def test_unit_rows_are_scored_as_texts(tmp_path: Path, suffix: str, transposed: bool) -> None:
    embeddings = unit(CLASSES, WIDTH, seed=4)
    stored, path = (embeddings.t() if transposed else embeddings).contiguous(), tmp_path / f"matrix.{suffix}"
    if suffix == "npy":
        np.save(path, stored.numpy().astype(np.float64))
    elif suffix == "pt":
        torch.save(stored.double(), path)
    else:
        save_file({"text_features": stored}, path)
    baked = from_matrix(path, LABELS, WIDTH, SIGMOID)
    assert np.abs(baked.weights - embeddings.numpy()).max() < 1e-6
    assert baked.weights.dtype == np.float32
    assert (baked.scoring, baked.bias.tolist()) == (SIGMOID, [-16.5] * CLASSES)


def test_a_sigmoid_repositorys_scores_reach_the_head(repository: Path) -> None:
    publish(repository, "sig", zero_shot(scoring=SIGMOID))
    features = unit(3, WIDTH, seed=5)
    expected = 112 * features @ unit(CLASSES, WIDTH, seed=0).t() - 16.5
    assert (head_logits(repository, "sig", features) - expected).abs().max() <= 5e-5
    config = read_config(repository / "classifier_head_sig" / "config.pbtxt")
    assert config.parameters["scoring"].string_value == "sigmoid"


def test_rows_of_any_length_mean_two_things(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", 3 * unit(CLASSES, WIDTH, seed=4).numpy())
    with pytest.raises(
        ClassifierError, match="rows of length 3 to 3, not 1; give --normalize for class embeddings, or"
    ):
        from_matrix(tmp_path / "m.npy", LABELS, WIDTH, SIGMOID)
    normalized = from_matrix(tmp_path / "m.npy", LABELS, WIDTH, SIGMOID, normalize=True)
    assert np.abs(normalized.weights - unit(CLASSES, WIDTH, seed=4).numpy()).max() < 1e-6
    with pytest.raises(ClassifierError, match="no --normalize beside it"):
        from_matrix(tmp_path / "m.npy", LABELS, WIDTH, SIGMOID, normalize=True, logit_scale=1.0)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("ran code",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.eye(5), r"is \[5, 5\]; for 4 labels and this repository's image embeddings it must be \[4, 64\]"),
        (torch.full((CLASSES, WIDTH), float("nan")), "the class matrix holds NaN or infinity"),
        (torch.zeros(CLASSES, WIDTH), "a row of zeros, for 'red circle'; leave the label out"),
        (torch.ones(3), "holds 0 matrices .none.; name one with --key"),
        ({"a": torch.eye(2), "b": {"c": torch.eye(2)}}, "holds 2 matrices .a, b.c.; name one with --key"),
        ({"weight": torch.eye(CLASSES, WIDTH), "bias": torch.ones(3)}, r"the bias has shape \[3\], not \[4\]"),
        ({}, "holds no arrays"),
        (Evil(), "would run code when read"),
        (None, "holds no arrays"),
    ],
)
def test_a_file_that_is_no_classifier(tmp_path: Path, content: Any, message: str, capfd: Any) -> None:
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(ClassifierError, match=message):
        from_matrix(tmp_path / "m.pt", LABELS, WIDTH, SIGMOID, **options_for(content))
    assert capfd.readouterr().out == ""


def options_for(content: Any) -> dict[str, Any]:
    """A head where there is a bias; elsewhere class embeddings."""
    return {"logit_scale": 1.0} if isinstance(content, dict) and "bias" in content else {"normalize": True}


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for name, content in (("a.npy", b"x"), ("a.safetensors", b"x"), ("a.pt", b"x"), ("b.npy", None)):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ClassifierError, match="cannot be read|no file at|no file of weights"):
            from_matrix(tmp_path / name, LABELS, WIDTH, SIGMOID)
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    with pytest.raises(ClassifierError, match=r"cannot be read \(Object arrays"):
        from_matrix(tmp_path / "objects.npy", LABELS, WIDTH, SIGMOID)
    save_file({"a": torch.eye(2)}, tmp_path / "k.safetensors")
    with pytest.raises(ClassifierError, match="has no matrix 'z'; it has a"):
        from_matrix(tmp_path / "k.safetensors", LABELS, WIDTH, SIGMOID, key="z")


def test_embeddings_of_another_width_are_refused(repository: Path) -> None:
    narrow = ClassifierHead.of_embeddings(LABELS, unit(CLASSES, 32, seed=0).numpy(), SIGMOID, method="matrix")
    with pytest.raises(ClassifierError, match="the class matrix is 32 wide, the repository's image embeddings 64"):
        publish(repository, "narrow", narrow)
