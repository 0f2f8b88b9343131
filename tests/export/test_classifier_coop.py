"""CoOp's learned prompts, baked, against CoOp's own forward; its files as Dassl writes them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from classifier_command import add_classifier, write_merged_demo
from tritonclip_export.checkpoints.load import load_checkpoint
from tritonclip_export.errors import ClassifierError
from tritonclip_export.frameworks import open_clip, torch
from tritonclip_export.repository.manifest import verify

# Names of one, two and three tokens and more; CoOp reads _ as a space.
LABELS = ["cat", "red_circle", "Saint Bernard dog", "crème brûlée", "aardvark"]
CONTEXT = 5
# Of the demo checkpoint's text tower.
WIDTH = 64


@pytest.fixture(scope="module")
def checkpoint(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_merged_demo(demo, tmp_path_factory.mktemp("coop") / "checkpoint")


@pytest.fixture(scope="module")
def clip_model(checkpoint: Path) -> Any:
    return load_checkpoint(str(checkpoint)).build()


class PromptLearner(torch.nn.Module):
    """Joins start, learned context, class name and end in the three ways of the paper; keeps what CoOp's file keeps."""

    def __init__(self, clip_model: Any, *, class_specific: bool, position: str, seed: int = 0) -> None:
        super().__init__()
        tokenizer = open_clip.SimpleTokenizer()
        names = [name.replace("_", " ") for name in LABELS]
        self.ids = tokenizer([" ".join(["X"] * CONTEXT) + " " + name + "." for name in names])
        self.name_lengths = [len(tokenizer.encode(name)) for name in names]
        self.position = position
        with torch.no_grad():
            embedding = clip_model.token_embedding(self.ids)
        shape = (len(names), CONTEXT) if class_specific else (CONTEXT,)
        generator = torch.Generator().manual_seed(seed)
        self.ctx = torch.nn.Parameter(0.05 * torch.randn(*shape, embedding.shape[-1], generator=generator))
        self.register_buffer("token_prefix", embedding[:, :1])
        self.register_buffer("token_suffix", embedding[:, 1 + CONTEXT :])

    def forward(self) -> torch.Tensor:
        contexts = self.ctx if self.ctx.dim() == 3 else self.ctx.expand(len(LABELS), -1, -1)
        before = {"end": CONTEXT, "middle": CONTEXT // 2, "front": 0}[self.position]
        rows = []
        for start, context, rest, length in zip(
            self.token_prefix, contexts, self.token_suffix, self.name_lengths, strict=True
        ):
            rows.append(torch.cat([start, context[:before], rest[:length], context[before:], rest[length:]]))
        return torch.stack(rows)


def class_features(clip_model: Any, learner: PromptLearner) -> torch.Tensor:
    """CoOp's TextEncoder on open_clip's modules."""
    with torch.no_grad():
        hidden = learner() + clip_model.positional_embedding
        hidden = clip_model.ln_final(clip_model.transformer(hidden, attn_mask=clip_model.attn_mask))
        pooled = hidden[torch.arange(len(hidden)), learner.ids.argmax(dim=-1)] @ clip_model.text_projection
    return pooled / pooled.norm(dim=-1, keepdim=True)


def save(learner: PromptLearner, path: Path, *, zipped: bool = True, **changes: Any) -> Path:
    """As Dassl saves: with an optimizer's state, and a warm-up's scheduler that holds a second one as an object."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.002, momentum=0.9)
    optimizer.param_groups[0]["params"][0].sum().backward()
    optimizer.step()
    scheduler = {"successor": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200), "warmup_epoch": 1}
    content = {"state_dict": {**learner.state_dict(), **changes}, "epoch": 50, "val_result": None}
    content |= {"optimizer": optimizer.state_dict(), "scheduler": scheduler}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def baked(repository: Path, name: str) -> torch.Tensor:
    return torch.from_numpy(np.load(repository / f"classifier_head_{name}" / "1" / "weights.npy"))


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("class_specific", [False, True])
def test_class_embeddings_are_those_of_coop(
    checkpoint: Path,
    repository: Path,
    labels: Path,
    tmp_path: Path,
    clip_model: Any,
    class_specific: bool,
    position: str,
) -> None:
    learner = PromptLearner(clip_model, class_specific=class_specific, position=position)
    file = save(learner, tmp_path / "model.pth.tar-50")
    options = ["--labels", labels, "--prompt-learner", file, "--checkpoint", checkpoint]
    options += [] if position == "end" else ["--class-token-position", position]
    add_classifier("coop", repository, "--name", "learned", *options)
    expected = class_features(clip_model, learner)
    assert (baked(repository, "learned") - expected).abs().max() <= 2e-5
    # What the test would not see if the position, or the context itself, were of no consequence.
    other = PromptLearner(clip_model, class_specific=class_specific, position=position, seed=1)
    assert (class_features(clip_model, other) - expected).abs().max() > 1e-3
    record = verify(repository)["classifiers"]["learned"]
    assert (record["method"], record["class_token_position"]) == ("coop", position)


def test_positions_differ(clip_model: Any) -> None:
    features = [
        class_features(clip_model, PromptLearner(clip_model, class_specific=False, position=position))
        for position in ("end", "middle", "front")
    ]
    assert min((features[i] - features[j]).abs().max() for i, j in ((0, 1), (0, 2), (1, 2))) > 1e-3


def test_a_generic_context_serves_other_classes(
    checkpoint: Path, repository: Path, tmp_path: Path, clip_model: Any
) -> None:
    learner = PromptLearner(clip_model, class_specific=False, position="end")
    file = save(learner, tmp_path / "model-best.pth.tar", zipped=False)
    (tmp_path / "new").write_text("blue square\npink star\n")
    options = ["--labels", tmp_path / "new", "--prompt-learner", file, "--checkpoint", checkpoint]
    add_classifier("coop", repository, "--name", "new", *options)
    assert baked(repository, "new").shape[0] == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"meta_net.linear1.weight": torch.ones(2, 2)}, "CoCoOp's prompts depend on the image .meta_net."),
        ({"compound_prompts_text.0": torch.ones(2, 2)}, "MaPLe's prompts change the image tower too"),
        ({"ctx": torch.ones(3)}, r"no learned context `ctx` \[n, width\]"),
        ({"ctx": torch.full((5, WIDTH), float("nan"))}, "the learned context holds NaN or infinity"),
        ({"ctx": torch.ones(4, 5, WIDTH)}, "has contexts for 4 classes, 5 labels were given"),
        ({"ctx": torch.ones(5, 96)}, "the context's vectors are 96 wide, the checkpoint's token embeddings"),
        ({"ctx": torch.ones(80, WIDTH)}, "does not fit the context; shorten the label"),
        ({"token_prefix": torch.ones(5, 1, 96)}, "was trained on another CLIP"),
        ({"token_prefix": torch.ones(5, 1, WIDTH)}, "was trained on another CLIP: its start token is not the"),
    ],
)
def test_what_is_no_prompt_learner_of_this_checkpoint(
    checkpoint: Path,
    repository: Path,
    labels: Path,
    tmp_path: Path,
    clip_model: Any,
    changes: dict[str, torch.Tensor],
    message: str,
) -> None:
    learner = PromptLearner(clip_model, class_specific=False, position="end")
    file = save(learner, tmp_path / "model.pth.tar-1", **changes)
    options = ["--labels", labels, "--prompt-learner", file, "--checkpoint", checkpoint]
    with pytest.raises(ClassifierError, match=message):
        add_classifier("coop", repository, "--name", "x", *options)
    assert "classifiers" not in verify(repository)


def test_labels_in_another_order_are_found(checkpoint: Path, repository: Path, tmp_path: Path, clip_model: Any) -> None:
    file = save(PromptLearner(clip_model, class_specific=True, position="end"), tmp_path / "model.pth.tar-1")
    (tmp_path / "swapped").write_text("\n".join([LABELS[1], LABELS[0], *LABELS[2:]]), encoding="utf-8")
    options = ["--labels", tmp_path / "swapped", "--prompt-learner", file, "--checkpoint", checkpoint]
    with pytest.raises(ClassifierError, match="class 0 was not the label given at its place; give the class names"):
        add_classifier("coop", repository, "--name", "x", *options)


def test_a_repository_of_other_weights_is_found(
    demo: Path, repository: Path, labels: Path, tmp_path: Path, clip_model: Any
) -> None:
    file = save(PromptLearner(clip_model, class_specific=False, position="end"), tmp_path / "model.pth.tar-1")
    options = ["--labels", labels, "--prompt-learner", file, "--checkpoint", demo / "checkpoint"]
    with pytest.raises(ClassifierError, match="the checkpoint's text tower is not the repository's: .*cosine"):
        add_classifier("coop", repository, "--name", "x", *options)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("ran code",))


def test_a_scheduler_that_would_run_code_does_not(
    checkpoint: Path, repository: Path, labels: Path, tmp_path: Path, clip_model: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    learner = PromptLearner(clip_model, class_specific=False, position="end")
    torch.save({"state_dict": learner.state_dict(), "scheduler": Evil()}, tmp_path / "evil")
    options = ["--labels", labels, "--prompt-learner", tmp_path / "evil", "--checkpoint", checkpoint]
    with pytest.raises(ClassifierError, match="would run code when read"):
        add_classifier("coop", repository, "--name", "x", *options)
    assert "ran code" not in capfd.readouterr().out
