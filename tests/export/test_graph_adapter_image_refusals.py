"""What image-side graph adapters are refused for, and that no code of a file runs."""

import re
from pathlib import Path

import pytest
from torch.optim.lr_scheduler import CosineAnnealingLR

from graph_adapter_models import (
    MODEL_CFG,
    VISION_WIDTH,
    attached,
    build,
    clip_adapter_file,
    dassl,
    image_features,
    maple_weights,
    noise,
)
from tritonclip_export.adapters.graph import is_graph_adapter, read_graph_adapter
from tritonclip_export.checkpoints.model import new_model
from tritonclip_export.errors import AdapterError
from tritonclip_export.frameworks import torch

WIDTH = VISION_WIDTH


@pytest.fixture
def clip_adapter(tmp_path: Path) -> Path:
    return clip_adapter_file(tmp_path)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"fc.0.weight": noise(6, 24), "fc.2.weight": noise(24, 6)}, "is of 24 dimensions, and .* have 20"),
        ({"prompt_embeddings": noise(1, 2, 30)}, "are 30 wide, and the image tower is 24 wide"),
        (
            {"prompt_embeddings": noise(1, 2, WIDTH), "deep_prompt_embeddings": noise(4, 2, WIDTH)},
            "prompts for layer 4 of the image tower, and the model's has 2",
        ),
    ],
)
def test_what_does_not_fit_is_named_and_the_model_stays_as_it_was(tensors, message: str, tmp_path: Path) -> None:
    torch.save(tensors, tmp_path / "adapter.pth")
    model = build()
    with pytest.raises(AdapterError, match=message):
        read_graph_adapter(tmp_path / "adapter.pth").attach(model)
    assert torch.equal(image_features(model), image_features(build()))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"meta_net.linear1.weight": noise(2, 2), "ctx": noise(4, 16)}, "CoCoOp .* text tower depends on the image"),
        ({"prompt_learner.meta_net.linear2.bias": noise(2), "prompt_learner.ctx": noise(4, 16)}, "CoCoOp"),
        ({"adapter.cross_attn.in_proj_weight": noise(6, 2)}, "attention joins both towers"),
        ({"multimodal_adapter.attn.q.weight": noise(6, 2)}, "attention joins both towers"),
        ({"ctx": noise(4, 16), "token_prefix": noise(3, 1, 16)}, "CoOp's.*classifier coop"),
    ],
)
def test_methods_that_are_no_two_towers_are_refused_with_the_reason(tensors, message: str, tmp_path: Path) -> None:
    path = dassl(tmp_path / "prompt_learner" / "model.pth.tar-50", tensors)
    assert is_graph_adapter(path)
    with pytest.raises(AdapterError, match=message):
        read_graph_adapter(path)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"something.weight": noise(2, 2)}, "of no known format .first tensor: something.weight.; give one of"),
        ({"fc.0.weight": noise(5, 20), "fc.2.weight": noise(20, 4)}, r"allowed: \(C / 4, C\)"),
        (
            {"fc.0.weight": noise(5, 20), "fc.0.bias": noise(5), "fc.2.weight": noise(20, 5)},
            "fc.0.bias, .*without",
        ),
        ({f"{tower}.fc.{layer}.weight": noise(5, 5) for tower in "ab" for layer in (0, 2)}, "once and without"),
        ({"deep_prompt_embeddings": noise(1, 2, 24)}, "no prompt_embeddings"),
        ({"prompt_embeddings": noise(2, 24)}, r"allowed: \(1, tokens, width\)"),
        ({"prompt_embeddings": noise(1, 2, 24), "deep_prompt_embeddings": noise(1, 3, 24)}, "one shape"),
        ({"prompt_embeddings": noise(1, 2, 24) / 0}, "hold NaN or infinity"),
        ({"prompt_learner.compound_prompts_text.0": noise(2, 16)}, "no prompt_learner.ctx"),
        ({**maple_weights(0), "prompt_learner.compound_prompts_text.0": noise(2, 16)}, "no whole linear layer"),
    ],
)
def test_broken_files_are_refused(tensors, message: str, tmp_path: Path) -> None:
    torch.save(tensors, tmp_path / "adapter.pth")
    with pytest.raises(AdapterError, match=message):
        read_graph_adapter(tmp_path / "adapter.pth")


def test_a_tower_without_class_token_pooling_is_refused(tmp_path: Path) -> None:
    torch.save({"prompt_embeddings": noise(1, 2, WIDTH)}, tmp_path / "vpt.pth")
    average = new_model({**MODEL_CFG, "vision_cfg": {**MODEL_CFG["vision_cfg"], "pool_type": "avg"}})
    with pytest.raises(AdapterError, match="pool their class token"):
        read_graph_adapter(tmp_path / "vpt.pth").attach(average)


def test_twice_the_same_is_refused(clip_adapter: Path, tmp_path: Path) -> None:
    torch.save({"prompt_embeddings": noise(1, 2, WIDTH)}, tmp_path / "vpt.pth")
    for path, message in ((clip_adapter, "a CLIP-Adapter already"), (tmp_path / "vpt.pth", "prompts already")):
        model = attached(path)
        with pytest.raises(AdapterError, match=message):
            read_graph_adapter(path).attach(model)


class RunsCode:
    """Creates a file when it is read by an ordinary unpickler."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


@pytest.mark.parametrize("place", ["state_dict", "scheduler"])
def test_a_pickle_that_wants_to_run_code_is_refused(place: str, tmp_path: Path) -> None:
    content = {"state_dict": {"fc.0.weight": noise(5, 20), "fc.2.weight": noise(20, 5)}}
    content.setdefault(place, {})["evil"] = RunsCode(tmp_path / "trace")
    torch.save(content, tmp_path / "model.pth.tar")
    with pytest.raises(AdapterError, match=r"would run code when read \(it names .*\); if you trust it"):
        read_graph_adapter(tmp_path / "model.pth.tar")
    assert not (tmp_path / "trace").exists()


def test_the_training_state_is_never_built(clip_adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CosineAnnealingLR, "__setstate__", lambda *_: pytest.fail("was built"), raising=False)
    assert read_graph_adapter(clip_adapter).method == "CLIP-Adapter"


def test_files_that_are_cut_off_or_of_another_kind_are_refused(clip_adapter: Path, tmp_path: Path) -> None:
    whole = clip_adapter.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"text", whole[:200] + whole[900:]):
        file = tmp_path / "broken.pth.tar"
        file.write_bytes(content)
        # No other reader takes this kind of file, so that it is this one that says what is wrong.
        assert is_graph_adapter(file)
        file.with_suffix(".pt").write_bytes(content)
        assert not is_graph_adapter(file.with_suffix(".pt"))
        with pytest.raises(AdapterError, match=re.escape(str(file))):
            read_graph_adapter(file)
