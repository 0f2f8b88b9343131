"""Where PEFT's other methods sit: one tower, convolutions, layers that never run, Hugging Face's own models."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from family_checkpoints import chinese_clip, hf_siglip
from lora_models import (
    MODEL_CFG,
    hf_embeddings,
    images,
    largest_difference,
    open_clip_embeddings,
    peft_wrap,
    plain_model,
    quiet,
    set_config,
    texts,
    train_adapter,
)
from peft_methods import STATE_DICT, build, peft_config, read, train
from tritonclip_export.adapters.lora import AdapterReport, merge_adapters, read_adapter
from tritonclip_export.checkpoints.checkpoint import Checkpoint
from tritonclip_export.checkpoints.load import load_checkpoint
from tritonclip_export.errors import AdapterError
from tritonclip_export.frameworks import torch
from tritonclip_export.parity.reference import ReferenceUnavailable, unmerged_reference

TOLERANCE = 2e-5
# Nothing is merged at a place that never runs, so what a fault would change must be seen.
VISIBLE = 1e-3


def merge(path: Path, weight: float = 1.0) -> tuple[dict[str, torch.Tensor], AdapterReport]:
    result = merge_adapters(STATE_DICT, [(read(path), weight)], build=build)
    return result.state_dict, result.report.adapters[0]


PLACES: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "hf text tower, transformers 5 names": ("hf", "IA3", "text_model", {}),
    "hf vision tower, transformers 5 names": ("hf", "OFT", "vision_model", {}),
    "open_clip visual alone": ("open_clip", "LOHA", "visual", {}),
    "hf convolution": ("hf", "LOHA", "", {"target_modules": ["patch_embedding"]}),
    "open_clip convolution": ("open_clip", "LOKR", "", {"target_modules": ["conv1"]}),
    "hf modules_to_save": ("hf", "MISS", "", {"modules_to_save": ["visual_projection", "final_layer_norm"]}),
    "hf projections": ("hf", "BOFT", "", {"target_modules": ["text_projection", "visual_projection"]}),
    "open_clip UniLoRA of one tower": ("open_clip", "UNILORA", "visual", {}),
}


@pytest.mark.parametrize("name", PLACES)
def test_places(name: str, tmp_path: Path) -> None:
    namespace, case, part, settings = PLACES[name]
    trained = train(tmp_path / "a", namespace, case, part, **settings)
    assert largest_difference(trained.embeddings, open_clip_embeddings(STATE_DICT)) > VISIBLE
    merged, report = merge(trained.path)
    assert largest_difference(open_clip_embeddings(merged), trained.embeddings) <= TOLERANCE
    assert (report.method, report.namespace, report.skipped, report.warnings) == (case, namespace, (), ())
    assert report.folded > 0
    assert report.relative_norm > 0


@pytest.mark.parametrize("case", ["IA3", "LOHA", "LORA, pissa"])
def test_layers_that_never_run_are_left_out(case: str, tmp_path: Path) -> None:
    """PEFT's merge_and_unload would add them; PiSSA's start takes a part out of them, and that does act."""
    trained = train(tmp_path / "a", "open_clip", case, target_modules=["out_proj", "c_fc"])
    merged, report = merge(trained.path)
    assert largest_difference(open_clip_embeddings(merged), trained.embeddings) <= TOLERANCE
    assert len(report.skipped) == 4
    assert all(skipped.key.endswith("attn.out_proj") for skipped in report.skipped)
    assert "never run" in report.warnings[0]
    by_peft = plain_model("open_clip", STATE_DICT)
    with quiet():
        from peft import PeftModel

        PeftModel.from_pretrained(by_peft, trained.path).merge_and_unload()
    assert largest_difference(open_clip_embeddings(by_peft.state_dict()), trained.embeddings) > VISIBLE


def test_fused_projection_of_eva_never_runs(tmp_path: Path) -> None:
    """The attention of EVA01-g-14 and EVA02-E-14."""
    from timm.models.eva import EvaAttention

    torch.manual_seed(0)
    plain = torch.nn.ModuleDict(
        {"visual": torch.nn.ModuleDict({"attn": EvaAttention(32, num_heads=2, scale_norm=False)})}
    )
    model = peft_wrap(deepcopy(plain).eval(), peft_config("LOHA", r=2, target_modules=["qkv", "proj"]))
    with torch.no_grad(), quiet():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(torch.randn_like(parameter))
        model.save_pretrained(tmp_path)
        weights = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
        result = merge_adapters(weights, [(read(tmp_path), 1.0)], build=lambda given: _loaded(plain, given))
        tokens = torch.randn(1, 5, 32)
        wanted = model.eval().base_model.model["visual"]["attn"](tokens)
        merged = _loaded(plain, result.state_dict)["visual"]["attn"](tokens)
        assert (merged - wanted).abs().max() <= TOLERANCE
        assert (plain["visual"]["attn"].eval()(tokens) - wanted).abs().max() > VISIBLE
    assert [entry.key for entry in result.report.adapters[0].skipped] == ["visual.attn.qkv"]


def _loaded(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> Any:
    loaded = deepcopy(model).eval()
    loaded.load_state_dict(weights)
    return loaded


def test_adalora_after_its_ranks_were_allocated(tmp_path: Path) -> None:
    base = plain_model("hf", STATE_DICT)
    schedule = {"init_r": 6, "target_r": 2, "tinit": 1, "tfinal": 1, "deltaT": 1, "total_step": 10}
    model = peft_wrap(base, peft_config("ADALORA", target_modules=["q_proj", "fc1"], **schedule))
    torch.manual_seed(0)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=5.0)
    for step in range(10):
        optimizer.zero_grad()
        image = base.visual_projection(base.vision_model(pixel_values=images()).pooler_output)
        text = base.text_projection(base.text_model(input_ids=texts()).pooler_output)
        (image - torch.randn_like(image)).square().mean().add(
            (text - torch.randn_like(text)).square().mean()
        ).backward()
        optimizer.step()
        model.base_model.update_and_allocate(step)
    with quiet():
        model.save_pretrained(tmp_path)
    model.eval()
    merged, _ = merge(tmp_path)
    assert largest_difference(hf_embeddings(base), open_clip_embeddings(STATE_DICT)) > VISIBLE
    assert largest_difference(open_clip_embeddings(merged), hf_embeddings(base)) <= TOLERANCE


@pytest.fixture(scope="module")
def hf_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Checkpoint]:
    made: dict[str, Checkpoint] = {}

    def make(name: str) -> Checkpoint:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            with quiet():
                {"siglip": hf_siglip, "chinese_clip": chinese_clip}[name](folder)
                made[name] = load_checkpoint(str(folder))
        return made[name]

    return make


@pytest.mark.parametrize(("name", "trained_class"), [("siglip", "SiglipModel"), ("chinese_clip", "ChineseCLIPModel")])
def test_models_that_transformers_runs(
    name: str, trained_class: str, hf_checkpoints: Callable[[str], Checkpoint], tmp_path: Path
) -> None:
    """SigLIP's out_proj of the pooling head never runs; the adapter is on it too."""
    checkpoint = hf_checkpoints(name)
    own = checkpoint.build({key: tensor.clone() for key, tensor in checkpoint.state_dict.items()})
    targets = {"siglip": ["q_proj", "out_proj"], "chinese_clip": ["q_proj", "query"]}[name]
    model = peft_wrap(own, peft_config("LOHA", r=2, alpha=4, target_modules=targets))
    torch.manual_seed(0)
    with torch.no_grad(), quiet():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(0.5 * torch.randn_like(parameter))
        model.save_pretrained(tmp_path)
    set_config(tmp_path, auto_mapping={"base_model_class": trained_class})
    model.eval()
    result = merge_adapters(checkpoint.state_dict, [(read(tmp_path), 1.0)], build=checkpoint.build)
    merged, plain = checkpoint.build(result.state_dict), checkpoint.build()
    inputs = {"encode_image": torch.randn(2, 3, 224, 224), "encode_text": torch.randint(3, 9, (2, 12))}
    with torch.no_grad():
        for encode, given in inputs.items():
            features = [getattr(each, encode)(given) for each in (own, merged, plain)]
            assert (features[0] - features[1]).abs().max() <= TOLERANCE
            assert (features[0] - features[2]).abs().max() > VISIBLE
    skipped = [entry.key for entry in result.report.adapters[0].skipped]
    assert skipped == (["vision_model.head.attention.out_proj"] if name == "siglip" else [])


def test_adapter_of_another_family(hf_checkpoints: Callable[[str], Checkpoint], tmp_path: Path) -> None:
    plain = train_adapter(tmp_path / "lora", "hf", STATE_DICT, target_modules=["q_proj"]).path
    method = train(tmp_path / "ia3", "hf", "IA3").path
    siglip = hf_checkpoints("siglip")
    for path in (plain, method):
        with pytest.raises(AdapterError, match="trained on CLIPModel, but the checkpoint is a Siglip"):
            merge_adapters(siglip.state_dict, [(read_adapter(path), 1.0)], build=siglip.build)


def test_weights_scale_the_difference(tmp_path: Path) -> None:
    path = train(tmp_path / "a", "hf", "OFT").path
    (whole, _), (half, report) = merge(path), merge(path, -0.5)
    for name, base in STATE_DICT.items():
        assert torch.allclose(half[name] - base, -0.5 * (whole[name] - base), atol=1e-6), name
    assert report.weight == -0.5


def test_methods_and_lora_are_summed(tmp_path: Path) -> None:
    lora = read_adapter(train_adapter(tmp_path / "lora", "open_clip", STATE_DICT, target_modules=["attn"]).path)
    other = read_adapter(train(tmp_path / "ia3", "hf", "IA3").path)
    together = merge_adapters(STATE_DICT, [(lora, 0.5), (other, 2.0)]).state_dict
    alone = [merge_adapters(STATE_DICT, [(adapter, 1.0)]).state_dict for adapter in (lora, other)]
    for name, base in STATE_DICT.items():
        wanted = base + 0.5 * (alone[0][name] - base) + 2.0 * (alone[1][name] - base)
        assert torch.allclose(together[name], wanted, atol=1e-5), name
    with pytest.raises(ReferenceUnavailable, match="names of open_clip and of Hugging Face"):
        unmerged_reference(MODEL_CFG, STATE_DICT, [(lora, 0.5), (other, 2.0)])
    with pytest.raises(ReferenceUnavailable, match="only alone and with weight 1"):
        unmerged_reference(MODEL_CFG, STATE_DICT, [(other, 2.0)])
